"""Cross-entropy fine-tuning, with the text tower or a linear layer as the classifier.

    text head:    loss = mean_i CE( scale * <z_i, e_k>, y_i ) over the classes k, both towers trained
    linear head:  loss = mean_i CE( scale * <z_i, w_k> + b_k, y_i ), image tower and head trained

with z the image features and e_k the embedding of "a photo of a {class k}.". The classes are those of the current task
and the memory, or all seen so far. In the latter case each image pushes down every class without images, so that old
classes are lost without a memory. The text head is the cross-entropy ablation of FLYP (Goyal et al. 2023, section 5);
the linear head without a memory is the sequential baseline of the everclip paper (section 4.4). Its rows start at zero,
at Kaiming-uniform values, as in PyCIL, or at the zero-shot embeddings; old rows are kept when it grows.

    Parameters  none; a linear head with method.head=linear
    State       none
    Passes      1 of the image tower; 1 of the text tower for each class seen, none with a linear head
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2212.00638
"""

from __future__ import annotations

from everclip.methods.base.cost import Passes
from everclip.methods.shared.classify import Classify, HeadConfig, LabelsConfig


class Finetune(Classify):
    """Cross-entropy over class embeddings or a linear head."""

    class Config(LabelsConfig, HeadConfig):
        """Label smoothing is not searched, as it is not for EWC, DER, MEMO and iCaRL."""

    config: Config
    passes = Passes(text="seen")
