"""Every built-in component on one screen: name -> ("module:Class", one-line description)."""

from __future__ import annotations

BUILT_INS: dict[str, dict[str, tuple[str, str]]] = {
    "task": {
        "xnli": (
            "xsalt.tasks.xnli:XNLI",
            "natural language inference in 15 languages: entailment, neutral, contradiction",
        ),
        "pawsx": ("xsalt.tasks.pawsx:PAWSX", "adversarial paraphrase identification in 7 languages"),
        "pairs": (
            "xsalt.tasks.pairs:Pairs",
            "any labelled pairs or single sentences: columns and labels from the configuration",
        ),
        "mlm": ("xsalt.tasks.mlm:MLM", "plain text, one passage a line, for masked language modelling"),
    },
    "criterion": {
        "cross_entropy": ("xsalt.criterions.cross_entropy:CrossEntropy", "cross-entropy of the task's labels"),
        "consistency": (
            "xsalt.criterions.consistency:Consistency",
            "symmetric KL divergence between the views of an example",
        ),
        "masked_lm": (
            "xsalt.criterions.masked_lm:MaskedLM",
            "masked language modelling over the whole vocabulary",
        ),
        "target_language_mlm": (
            "xsalt.criterions.target_language_mlm:TargetLanguageMLM",
            "masked language modelling over the vocabulary of one language",
        ),
    },
    "model": {
        "auto": ("xsalt.models.auto:Auto", "the architecture of the pretrained checkpoint"),
        "bert": ("xsalt.models.bert:Bert", "BERT, mBERT, multilingual-e5: token types, positions from 0"),
        "xlm-roberta": ("xsalt.models.xlm_roberta:XLMRoberta", "XLM-R: no token types, positions after the padding id"),
    },
    "augmenter": {
        "codeswitch": (
            "xsalt.augmenters.codeswitch:CodeSwitch",
            "SALT: replace tokens by the model's own substitutions",
        ),
        "mixup": ("xsalt.augmenters.mixup:Mixup", "SALT: mix the embeddings of source and substituted tokens"),
    },
}
