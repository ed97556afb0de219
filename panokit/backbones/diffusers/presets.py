"""diffusers' schedulers under their short names, for the entry points of the group `panokit.schedulers`."""

from functools import partial
from typing import Any

from panokit.backbones.diffusers.scheduler import DiffusersScheduler


def _preset(name: str) -> Any:
    """A scheduler by its short name. `panokit plugins` shows its docstring."""
    preset = partial(DiffusersScheduler, name)
    preset.__doc__ = DiffusersScheduler.summary(name)
    return preset


ddim = _preset("ddim")
ddpm = _preset("ddpm")
pndm = _preset("pndm")
lcm = _preset("lcm")
tcd = _preset("tcd")
euler = _preset("euler")
euler_a = _preset("euler_a")
heun = _preset("heun")
lms = _preset("lms")
kdpm2 = _preset("kdpm2")
kdpm2_a = _preset("kdpm2_a")
dpmpp_2m = _preset("dpm++_2m")
dpmpp_2m_sde = _preset("dpm++_2m_sde")
dpmpp_3m = _preset("dpm++_3m")
dpmpp_2s = _preset("dpm++_2s")
unipc = _preset("unipc")
deis = _preset("deis")
sa = _preset("sa")
flow_euler = _preset("flow_euler")
flow_heun = _preset("flow_heun")
euler_karras = _preset("euler_karras")
heun_karras = _preset("heun_karras")
lms_karras = _preset("lms_karras")
kdpm2_karras = _preset("kdpm2_karras")
kdpm2_a_karras = _preset("kdpm2_a_karras")
dpmpp_2m_karras = _preset("dpm++_2m_karras")
dpmpp_2m_sde_karras = _preset("dpm++_2m_sde_karras")
dpmpp_2s_karras = _preset("dpm++_2s_karras")
unipc_karras = _preset("unipc_karras")
deis_karras = _preset("deis_karras")
sa_karras = _preset("sa_karras")
