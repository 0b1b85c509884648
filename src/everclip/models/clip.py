"""Wrap any open_clip model behind one small interface (Clip), with deterministic unit-length fp32 features."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from everclip.distributed import collectives
from everclip.models.attention import in_bf16
from everclip.models.folded import fold_norms
from everclip.models.low_rank import fold
from everclip.models.pieces import in_pieces, unwatched, watched
from everclip.models.preprocess import Preprocessing, pil_part, triple
from everclip.models.savable import write_folder, write_text_tower
from everclip.models.text import TextTower
from everclip.models.text_trunk import Kept, TextTrunk
from everclip.models.towers import input_side, is_convolutional, of_text
from everclip.models.trunk import Beside, Trunk, cut
from everclip.models.way import Way

CENTER = "image_center"  # key of the config file
_TEXT_CHUNK = 256  # prompts per forward pass: bounds the memory of a thousand classes with eighty templates
_SORTED_CHUNK = 64  # where they are sorted by length
_LOGIT_PARAMETERS = {"logit_scale", "logit_bias"}

Images = UInt8[Tensor, "b 3 height width"] | Float[Tensor, "b ..."]
"""Loaded pixels, kept activations of a frozen trunk, or the output of ``normalise`` for either."""


class Clip(nn.Module):
    """An open_clip model with its tokenizer and preprocessing.

    Features are unit length and fp32 whatever the precision of the towers. The module stays in eval mode:
    batch-norm statistics are frozen and dropout is off, so features are deterministic; gradients flow.

    Attributes:
        model: the open_clip model (``CLIP`` or ``CustomTextCLIP``), or its stand-in (lite_towers).
        name, config: the spec it was loaded from, and open_clip's own config of the model.
        image_size: side of the square input in pixels.
        mean, std: per channel, for images in 0..1.
        eval_transform: the model's own preprocessing of a PIL image up to the uint8 image (resize, crop, RGB).
        trunk: the frozen lower part of the image tower, where it was cut off; else None.
        text, text_trunk: the text tower; its frozen lower blocks where their output is kept, else None.
        multihead: whether a tower has torch's own attention.
        center: the mean that is subtracted from image features, if one is.
    """

    def __init__(
        self, model: nn.Module, model_cfg: dict[str, Any], tokenizer: Callable[..., Tensor], name: str
    ) -> None:
        """Wrap ``model``, built by open_clip from ``model_cfg``; ``tokenizer`` maps a list of prompts to token ids."""
        super().__init__()
        self.model: Any = model
        self.name = name
        self.trunk: Trunk | None = None
        self.text_trunk: TextTrunk | None = None
        self._text_rows: Kept | None = None
        self._keys: tuple[str, ...] = ()  # of the whole model's state, where it was cut
        self.config = model_cfg
        self._tokenizer = tokenizer
        self.text = TextTower(model, tokenizer)
        self.image_size = input_side(self.model.visual)
        self._preprocess_cfg = Preprocessing(**{**self.model.visual.preprocess_cfg, "size": self.image_size})
        self.mean, self.std = triple(self._preprocess_cfg.mean), triple(self._preprocess_cfg.std)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self.center: Tensor | None
        self.register_buffer("center", None, persistent=False)
        self.eval_transform: Callable[[Image.Image], Image.Image] = pil_part(self._preprocess_cfg)
        # fixed (sine-cosine) position embeddings are parameters without gradient: they are never trained
        self._fixed = {key for key, value in self.model.named_parameters() if not value.requires_grad}
        self._held: frozenset[str] = frozenset()
        self._way = Way()
        convolutional = is_convolutional(self.model.visual)
        self._memory_format = torch.channels_last if convolutional else torch.contiguous_format
        if convolutional:
            self.model.visual.to(memory_format=torch.channels_last)
        fold_norms(self.model.visual)
        self.multihead = any(isinstance(part, nn.MultiheadAttention) for part in model.modules())
        self.train()

    @property
    def logit_scale(self) -> nn.Parameter:
        """log(1 / temperature), a scalar parameter; multiply cosines by its ``exp()``."""
        return self.model.logit_scale

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.logit_scale.device

    def train(self, mode: bool = True) -> "Clip":
        """Keep every submodule in eval mode, whatever ``mode`` says (see the class)."""
        return super().train(False)

    @contextmanager
    def running(self, **changes: Any) -> Iterator[None]:
        """While open, run the towers differently; ``changes`` are fields of ``Way``."""
        before = self._way
        self._way = before._replace(**changes)
        try:
            yield
        finally:
            self._way = before

    def put(self, model: nn.Module) -> None:
        """Replace ``model`` by another open_clip model of the same architecture."""
        self.model = model
        self.text.put(model)

    def cut(self, blocks: int, beside: Beside | None = None) -> None:
        """Cut off all but the last ``blocks`` blocks of the image tower; the part cut off never trains again. Raises
        UserError where the tower's blocks are not known, or none would be cut off.

        ``normalise`` then ends with the trunk, ``encode_image`` begins above it, copies of the tower are copies of its
        upper part, and ``save`` writes the whole model as before.

        Args:
            blocks: 0 leaves the features themselves.
            beside: computes what follows the features in each row, for ``pooled.pooled`` or ``depths.Depths`` to read.
        """
        assert self.trunk is None
        self._keys = tuple(self.model.state_dict())
        self.model.visual, self.trunk = cut(self.model.visual, blocks, beside)

    def alone(self) -> "Clip":
        """Return a model that shares the weights, whose image tower computes its features and nothing beside them."""
        if self.trunk is None or not self.trunk.vectors:
            return self
        shared = {id(part): part for part in (*self.parameters(), *self.buffers(), self._tokenizer)}
        made = copy.deepcopy(self, shared)
        made.model.visual, made.trunk, made._keys = self.trunk.lower, None, ()
        return made

    def keep_text(self, held: Collection[str], count: int) -> None:
        """From here on, compute the lower blocks of the text tower once for each prompt that is trained on.

        Args:
            held: names of parameters that never train from here on.
            count: number of last blocks of the text tower whose parameters are not among them.
        """
        self.text_trunk = TextTrunk.of(self.model, held, count, self._raw_text)

    def keep_features(self) -> None:
        """From here on, compute the features of a training prompt only once while no text parameter trains."""
        self._text_rows = Kept()

    def preprocessing(self) -> dict[str, Any]:
        """Describe how pictures become the model's input, ready for JSON."""
        return dict(vars(self._preprocess_cfg))

    def blank(self, count: int = 1) -> Images:
        """Return empty images, to see what the towers make of their shape."""
        return torch.zeros(count, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def normalise(self, images: Images) -> Float[Tensor, "b ..."]:
        """Turn images into the model's input on its device: uint8 pixels divided by 255, minus mean, over std.

        Where the image tower was cut, return its upper part's input: the trunk's output for pixels, or kept activations
        in fp32. Normalised images are returned unchanged; for several towers that take the same images, call this once.
        """
        pictures = images.dtype == torch.uint8
        if not pictures and self.trunk is None:
            assert images.shape[1] == 3, "activations are for a tower that was cut"
            return images
        values = images.to(self.device, non_blocking=True).to(torch.float32)
        if pictures:  # before the layout changes: a mean for each channel is slow where channels come last
            values = values.div_(255).sub_(self._mean).div_(self._std)
        if images.ndim == 4:
            values = values.contiguous(memory_format=self._memory_format)
        return self.trunk(values) if pictures and self.trunk is not None else values

    def encode_image(self, images: Images, tower: nn.Module | None = None) -> Float[Tensor, "n d"]:
        """Return unit-length fp32 features of images from the image tower or a copy; of the whole batch if shared."""
        inputs = self.normalise(images)
        return self.whole(self.unit(self._raw_image(inputs) if tower is None else tower(inputs)))

    def whole(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
        """Return the whole batch's rows where several processes share it, from the rows of this process's images."""
        share = self._way.share
        return rows if share is None else share.whole(rows)

    def unit(self, raw: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the image tower's output as unit-length fp32 features, centred where a mean is set."""
        features = nn.functional.normalize(raw.float(), dim=-1)
        if self.center is not None:
            features = nn.functional.normalize(features - self.center, dim=-1)
        return features

    def copy_tower(self) -> nn.Module:
        """Return a frozen copy of the image tower, or of the upper part of one that was cut; it shares no storage."""
        tower = copy.deepcopy(self.model.visual)
        fold(tower)
        return tower.eval().requires_grad_(False)

    @property
    def centered(self) -> bool:
        """Whether a mean is subtracted from image features."""
        return self.center is not None

    def center_images(self, mean: Float[Tensor, " d"] | Sequence[float]) -> None:
        """From here on, subtract ``mean``, the mean of unit-length image features, and make features unit length again.

        CLIP's image features lie in a narrow cone (Liang et al. 2022, https://arxiv.org/abs/2203.02053); without their
        mean, cosines spread out. ``save`` keeps the mean in the config file, where plain open_clip ignores it.
        """
        self.center = torch.as_tensor(mean, dtype=torch.float32, device=self.device)

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "p d"]:
        """Return unit-length fp32 features of at least one prompt; each distinct prompt is encoded once."""
        share = self._way.share
        if share is not None and share.light:  # a process's loss reaches the captions of its own images alone
            assert len(prompts) == sum(share.counts), "a caption per image"
            return share.whole(self._encode_prompts(prompts[share.own], False))
        return self._encode_prompts(prompts, share is not None)

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "p length"]:
        """Return token ids on the CPU; where the tower masks padding, columns that are all padding are left out."""
        return self.text.tokenize(prompts)

    def class_embeddings(self, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "c d"]:
        """Return one unit-length embedding per class name: the mean over ``templates`` (each with one ``{}``) of
        unit-length prompt embeddings, made unit length again (Radford et al. 2021, arXiv 2103.00020, section 3.1.4)."""
        prompts = [template.replace("{}", name) for name in names for template in templates]
        per_prompt = self.encode_text(prompts).view(len(names), len(templates), -1)
        return nn.functional.normalize(per_prompt.mean(dim=1), dim=-1)

    def image_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names (those of ``model``) and parameters of the image tower."""
        return ((name, p) for name, p in self._trainable() if name.startswith("visual."))

    def text_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names (those of ``model``) and parameters of the text tower, without logit scale and bias."""
        return ((name, p) for name, p in self._trainable() if not name.startswith("visual."))

    def hold(self, names: Collection[str]) -> None:
        """From here on, count these parameters (names of ``model``) for neither tower: they do not train."""
        self._held = frozenset(names)

    def held(self) -> set[int]:
        """Return ``id`` of each parameter that ``hold`` names."""
        return {id(parameter) for name, parameter in self.model.named_parameters() if name in self._held}

    def save(self, folder: str | Path) -> None:
        """Write a complete open_clip ``local-dir``: config, weights and, for a Hugging Face text tower, its
        config and tokenizer. No absolute path is written. Loading it gives the same weights bit for bit."""
        center = None if self.center is None else self.center.tolist()
        config: dict[str, Any] = {"model_cfg": self.config, "preprocess_cfg": vars(self._preprocess_cfg)}
        write_folder(Path(folder), self.whole_state(), config | ({CENTER: center} if center else {}))
        write_text_tower(Path(folder), self.model, self._tokenizer)

    def whole_state(self) -> dict[str, Tensor]:
        """Return the whole model's state, that of a trunk included."""
        state = self.model.state_dict()
        return state if self.trunk is None else self.trunk.joined(self._keys, state, "visual.")

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if name not in _LOGIT_PARAMETERS and name not in self._fixed and name not in self._held:
                yield name, parameter

    def _raw_image(self, images: Float[Tensor, "b ..."]) -> Tensor:
        pieces = self._way.pieces
        if pieces > 1:
            unwatched(self.model.visual, f"train.accumulate={pieces} runs the image tower in pieces")
        return in_pieces(self.model.encode_image, images, pieces)

    def _encode_prompts(self, prompts: Sequence[str], shared: bool) -> Float[Tensor, "p d"]:
        """Encode prompts in this process alone or, if ``shared``, a part of the distinct prompts in each process."""
        distinct = list(dict.fromkeys(prompts))
        size = _TEXT_CHUNK
        if not torch.is_grad_enabled() and self.device.type == "cpu":  # as little padding as possible
            distinct.sort(key=self.text.length)
            size = _SORTED_CHUNK
        row, count = {prompt: index for index, prompt in enumerate(distinct)}, len(distinct)
        shared = shared and count >= collectives.size()
        every = (slice(start, start + size) for start in range(0, count, size))
        chunks = [distinct[part] for part in (collectives.chunks(count, size) if shared else every)]
        # bound here: a piece may be computed again when ``_way`` is another one
        encode = partial(self._encode_distinct, bf16=self._way.text_bf16)
        features = torch.cat([in_pieces(encode, chunk, self._way.pieces) for chunk in chunks])
        if shared:
            sizes = [part.stop - part.start for part in collectives.parts(count)]
            features = collectives.with_gradient(features, sizes)
        if distinct == [*prompts]:
            return features
        rows = torch.tensor([row[prompt] for prompt in prompts], device=features.device)
        # not features[rows]: its backward adds in the order in which threads finish, so no two runs would be equal
        return features.index_select(0, rows)

    def _encode_distinct(self, prompts: list[str], bf16: bool) -> Float[Tensor, "p d"]:
        # rows are kept for training only: those of an evaluation's many prompts are not worth their memory
        training = torch.is_grad_enabled()
        weights = [*self._text_weights()] if training and self._text_rows is not None else []
        frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
        if self._text_rows is not None and frozen and not watched(of_text(self.model)):
            rows = self._text_rows.rows(prompts, weights, lambda prompt: self._raw_text([prompt])[0])
            return nn.functional.normalize(torch.stack(rows), dim=-1)
        trunk = self.text_trunk if training else None
        with in_bf16(self.device.type) if bf16 else nullcontext():
            raw = self._raw_text(prompts) if trunk is None else trunk(prompts, self._raw_text)
        return nn.functional.normalize(raw.float(), dim=-1)

    def _text_weights(self) -> Iterator[nn.Parameter]:
        """Yield all parameters of the text tower, trained or not."""
        every = self.model.named_parameters()
        return (p for name, p in every if not name.startswith("visual.") and name not in _LOGIT_PARAMETERS)

    def _raw_text(self, prompts: list[str]) -> Tensor:
        return self.text(self.text.fitted(self.tokenize(prompts)).to(self.device))
