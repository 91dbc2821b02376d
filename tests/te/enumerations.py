"""The enumerations of the extension `transformer_engine_torch` 2.11."""

from __future__ import annotations

from enum import IntEnum

_LAYOUTS = (
    "SB3HD SBH3D SBHD_SB2HD SBHD_SBH2D SBHD_SBHD_SBHD BS3HD BSH3D BSHD_BS2HD BSHD_BSH2D BSHD_BSHD_BSHD T3HD TH3D "
    "THD_T2HD THD_TH2D THD_THD_THD SBHD_BSHD_BSHD BSHD_SBHD_SBHD THD_BSHD_BSHD THD_SBHD_SBHD Paged_KV_BSHD_BSHD_BSHD "
    "Paged_KV_BSHD_SBHD_SBHD Paged_KV_SBHD_BSHD_BSHD Paged_KV_SBHD_SBHD_SBHD Paged_KV_THD_BSHD_BSHD "
    "Paged_KV_THD_SBHD_SBHD")


def _enumeration(name: str, members: str, prefix: str = "") -> type[IntEnum]:
    return IntEnum(name, [prefix + member for member in members.split()], start=0)


DType = _enumeration("DType", "Byte Int16 Int32 Int64 Float32 Float16 BFloat16 Float8E4M3 Float8E5M2 Float8E8M0 "
                              "Float4E2M1", "k")
NVTE_QKV_Format = _enumeration("NVTE_QKV_Format", "SBHD BSHD THD BSHD_2SBHD SBHD_2BSHD THD_2BSHD THD_2SBHD", "NVTE_")
NVTE_Fused_Attn_Backend = _enumeration("NVTE_Fused_Attn_Backend", "F16_max512_seqlen F16_arbitrary_seqlen FP8 "
                                                                  "No_Backend", "NVTE_")
ENUMERATIONS: dict[str, type[IntEnum]] = {
    enumeration.__name__: enumeration for enumeration in (
        DType, NVTE_QKV_Format, NVTE_Fused_Attn_Backend,
        _enumeration("NVTE_QKV_Layout", _LAYOUTS, "NVTE_"),
        _enumeration("NVTE_Bias_Type", "NO_BIAS PRE_SCALE_BIAS POST_SCALE_BIAS ALIBI", "NVTE_"),
        _enumeration("NVTE_Mask_Type", "NO_MASK PADDING_MASK CAUSAL_MASK PADDING_CAUSAL_MASK CAUSAL_BOTTOM_RIGHT_MASK "
                                       "PADDING_CAUSAL_BOTTOM_RIGHT_MASK", "NVTE_"),
        _enumeration("NVTE_Softmax_Type", "VANILLA_SOFTMAX OFF_BY_ONE_SOFTMAX LEARNABLE_SOFTMAX", "NVTE_"),
        _enumeration("FP8FwdTensors", "GEMM1_INPUT GEMM1_WEIGHT GEMM1_OUTPUT GEMM2_INPUT GEMM2_WEIGHT GEMM2_OUTPUT "
                                      "GEMM3_INPUT GEMM3_WEIGHT GEMM3_OUTPUT"),
        _enumeration("FP8BwdTensors", "GRAD_OUTPUT1 GRAD_INPUT1 GRAD_OUTPUT2 GRAD_INPUT2 GRAD_OUTPUT3 GRAD_INPUT3"),
        _enumeration("CommOverlapType", "RS AG"),
        _enumeration("CommOverlapAlgo", "BULK_OVERLAP_AG BULK_OVERLAP_RS SPLIT_PIPELINED_AG_P2P SPLIT_PIPELINED_RS "
                                        "SPLIT_PIPELINED_RS_P2P ATOMIC_GEMM_RS ATOMIC_GEMM_AG_P2P ATOMIC_GEMM_RS_P2P "
                                        "EXTERNAL_BULK_OVERLAP_AG"),
        _enumeration("Float8BlockScaleTensorFormat", "COMPACT GEMM_READY"),
    )
}
