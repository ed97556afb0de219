"""The arguments of a pipeline's call: which there are, their defaults, and what a scene makes of them."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, final

from panokit.backbones.diffusers.drivable import BY_STEP, REWRITES
from panokit.backbones.diffusers.reading import Reading, rows_of
from panokit.errors import PromptWarning, SettingError
from panokit.scene import Scene


@final
class Arguments:
    """The arguments of a pipeline's call.

    Args:
        pipe: a pipeline of diffusers.
        config: the configuration of its network.
        chosen: arguments that stay the same at each step.
    """

    def __init__(self, pipe: Any, config: Any, chosen: Mapping[str, Any]) -> None:
        self._name = type(pipe).__name__
        self._takes = dict(inspect.signature(type(pipe).__call__).parameters)
        true = "true_cfg_scale" in self._takes and not config.get("guidance_embeds")
        self.guidance = "true_cfg_scale" if true else "guidance_scale"
        self._embeds_guidance = bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))
        self._side = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
        fixed = {"use_resolution_binning": False, **dict.fromkeys(REWRITES, False)}
        self.options = {name: value for name, value in fixed.items() if name in self._takes} | dict(chosen)
        self.steps: int = self.default("num_inference_steps", 50)
        self.guidance_scale = float(self.default(self.guidance, 1.0))
        self.options.pop(self.guidance, None)
        self.frames: Any = self.default("num_frames", 1)  # of the film that the pipeline makes by itself
        self.options.pop("num_frames", None)
        # The texts in whose place the user brings embeddings.
        self._brought = frozenset(name.removesuffix("_embeds") for name in self.options if name.endswith("prompt_embeds"))

    @property
    def takes_crops(self) -> bool:
        """Whether the network is told where a picture was cropped (SDXL)."""
        return "crops_coords_top_left" in self._takes

    def default(self, name: str, otherwise: Any) -> Any:
        """The value of an argument: the chosen one, or the pipeline's default.

        Args:
            name: the argument.
            otherwise: the value if the pipeline has no such argument, or None for its default.
        """
        if name in self.options:
            return self.options[name]
        value = self._takes[name].default if name in self._takes else None
        return otherwise if value is None or value is inspect.Parameter.empty else value

    def window(self, factor: int) -> tuple[int, int]:
        """Cells of the picture, or of a frame of the film, that the pipeline makes by itself.

        Args:
            factor: pixels along a side of a cell.
        """
        if isinstance(self.default("height", None), int):
            return self.default("height", 0) // factor, self.default("width", 0) // factor
        size = self._side or 1024 // factor
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def size(self, window: tuple[int, ...], factor: int, time: int = 1) -> dict[str, int]:
        """The arguments for pictures, or films, of a window's size.

        Args:
            window: cells along each axis.
            factor: pixels along a side of a cell.
            time: frames of a cell of a film after the first one.
        """
        height, width = (cells * factor for cells in window[-2:])
        frames = {"num_frames": (window[0] - 1) * time + 1 if len(window) == 3 else 1} if "num_frames" in self._takes else {}
        area = {"max_area": height * width} if "max_area" in self._takes else {}  # it would resize the picture to that
        return {"height": height, "width": width, **frames, **area}

    def place(self, origin: tuple[int, int], window: tuple[int, ...], canvas: tuple[int, ...], factor: int) -> dict[str, Any]:
        """The arguments that tell a network where a window was cropped out of the canvas; none for most networks."""
        if not self.takes_crops:
            return {}
        whole, crop, size = (tuple(cells * factor for cells in place) for place in (canvas, origin, window))
        return {"original_size": whole, "crops_coords_top_left": crop, "target_size": size}

    def guiding(self, scale: float) -> dict[str, float]:
        """The argument for a strength of guidance."""
        return {self.guidance: scale} if self.guidance in self._takes else {}

    def unguided(self, scale: float) -> dict[str, float]:
        """The argument that turns classifier-free guidance off; none where the strength is an input of the network."""
        return {} if self._embeds_guidance else self.guiding(scale)

    def of(self, scene: Scene) -> dict[str, Any]:
        """The arguments for a scene.

        Args:
            scene: what to paint.

        Raises:
            SettingError: the scene has texts, and the user has brought embeddings in their place.
        """
        options = {**self.options, **self.guiding(max(scene.guidance_scales)), "prompt": list(scene.texts)}
        if self._brought:
            if any(scene.texts) or any(scene.negatives):
                raise SettingError("the model was given prompt_embeds, which stand in for texts: make the prompt empty")
            options["prompt"] = None
        elif any(scene.negatives):
            if "negative_prompt" in self._takes:
                options["negative_prompt"] = list(scene.negatives)
            else:
                message = "this model takes no negative prompt, so it has no effect: leave it out"
                warnings.warn(message, PromptWarning, stacklevel=6)
        return options

    def warn(self, scene: Scene, reading: Reading) -> None:
        """Warn about a negative prompt, and about a strength of guidance, that the user chose and that have no effect.

        Args:
            scene: what to paint.
            reading: what the pipeline read of it.
        """
        negatives = [text for text in scene.negatives if text.strip()]
        if "negative_prompt" in self._takes and negatives and not any(map(reading.knows, negatives)):
            embedded = "true_cfg_scale" in self._takes and self.guidance != "true_cfg_scale"
            raises = "the model's true_cfg_scale" if embedded else "guidance_scale"
            message = f"the negative prompt has no effect, because nothing guides away from it: raise {raises}, or leave it out"
            warnings.warn(message, PromptWarning, stacklevel=6)
        if scene.guidance_end < 1 and self._embeds_guidance:
            message = "guidance_end has no effect: the strength of guidance is an input of this model's network; leave it out"
            warnings.warn(message, PromptWarning, stacklevel=6)
        chosen = [scale for scale in scene.guidance_scales if scale > 1 and scale != self.guidance_scale]
        if not chosen:
            return
        message = f"guidance_scale {chosen[0]:g} has no effect: "
        if self.guidance == "true_cfg_scale" and not negatives and "negative_prompt" not in self._brought:
            message += "this model guides only if there is a negative prompt; give negative_prompt"
        elif not reading.guides and not self._embeds_guidance:
            message += "this model is distilled and takes no guidance; leave it out"
        else:
            return
        warnings.warn(message, PromptWarning, stacklevel=6)

    def without_embeddings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments without embeddings that `encode_prompt` has returned: from now on it returns them by itself.

        Args:
            options: what `of` returned.
        """
        if not self._brought:
            return dict(options)
        rest = {name: value for name, value in options.items() if name.removesuffix("_embeds") not in self._brought}
        return {**rest, "prompt": [""], **({"negative_prompt": [""]} if "negative_prompt" in self._brought else {})}

    def blank(self, options: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Arguments for a call with `n` texts that are encoded already, which no language model need rewrite.

        Args:
            options: those for the scene.
            n: number of texts.
        """
        texts: dict[str, Any] = {name: [""] * n for name in ("prompt", "negative_prompt") if options.get(name)}
        for name in options:
            if name.endswith("prompt_embeds"):  # a pipeline that reads them without `encode_prompt`
                texts[name] = rows_of(options[name], 1, [0] * n)
        return {**options, **texts, **{name: False for name in REWRITES if name in self._takes}}

    def require_no_steps(self) -> None:
        """Check that no option depends on the number of a step, for a pipeline that cannot be told that number.

        Raises:
            SettingError: one does.
        """
        for option in BY_STEP & self.options.keys():
            if self.options[option] != self._takes[option].default:
                raise SettingError(
                    f"{option} is about some of the steps, and panokit cannot tell {self._name} which step it is in: "
                    f"leave {option} out"
                )
