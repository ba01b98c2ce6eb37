"""The processor: its name, and the instructions that this process may use of it."""

import os
import subprocess
import sys

import pytest
import torch

from mintage import processor
from mintage.measure.environment import device_name

FLAGS = {
    "amx": "fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile",
    "avx512": "fpu avx2 avx512f",
    "bf16": "fpu avx2 avx512f avx512_bf16",
    "avx2": "fpu avx2",
}


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Pretend a processor, and that torch finds `capability` on it."""

    def pretend(text, capability="AVX512", **limits):
        for name in processor._LIMITS:
            monkeypatch.delenv(name, raising=False)
        for name, value in limits.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(processor, "_LISTED", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)

    return pretend


def x86(flags):
    return f"processor\t: 0\nmodel name\t: Example 9000\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: other\n"


@pytest.mark.parametrize(
    ("kind", "capability", "limits", "used"),
    [
        ("amx", "AVX512", {}, "AVX512+AMX"),
        ("bf16", "AVX512", {}, "AVX512+AVX512_BF16"),
        ("avx512", "AVX512", {}, "AVX512"),
        ("avx2", "AVX2", {}, "AVX2"),
        ("amx", "AVX512", {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, "AVX512+AMX"),
        ("amx", "AVX512", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "AVX512+AMX"),
        ("amx", "AVX512", {"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, "AVX512+AVX512_BF16"),
        ("amx", "AVX512", {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "AVX512"),
        ("amx", "AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2+AMX"),  # oneDNN does not listen to torch's limit
        ("amx", "AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2"),
    ],
)
def test_what_is_computed_with_follows_the_processor_and_the_limits(listed, kind, capability, limits, used):
    listed(x86(FLAGS[kind]), capability, **limits)
    assert processor.instructions_used() == used
    assert processor.limits() == " ".join(f"{name}={value}" for name, value in limits.items())


def test_an_arm_processor_and_a_system_that_does_not_tell(listed):
    listed("processor : 0\nFeatures : fp asimd bf16 sve\n", "SVE256")
    assert processor.instructions_used() == "SVE256+BF16"
    assert processor.processor_features() == ("fp", "asimd", "bf16", "sve")
    listed("no such lines", "DEFAULT")
    assert (processor.instructions_used(), processor.processor_features()) == ("DEFAULT", ())
    assert processor.processor_name()


def test_the_name_is_that_of_the_first_core(listed):
    listed(x86(FLAGS["avx2"]))
    assert processor.processor_name() == "Example 9000"


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this processor has nothing wider")
def test_a_run_under_limits_says_what_it_used():
    code = "from mintage.measure.environment import environment; print(environment())"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | limits, capture_output=True, text=True)
    described = eval(done.stdout, {})
    assert described["instructions"] == "AVX2"
    assert described["limits"] == "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    assert device_name(described).endswith("limited to AVX2")
