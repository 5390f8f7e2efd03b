"""Text encoders of several families."""

from .family import Family, Network

FAMILY = Family(
    networks={
        **dict.fromkeys(
            ("BertModel", "Gemma2_2B", "Llama2", "Qwen25_7BVLI", "Qwen3_06B", "Qwen3_4B"), Network()
        ),
        "CLIPTextModel": Network(norms="CLIPTextModel"),
        "T5": Network(norms="T5"),
    }
)
