"""Measure fairly: paired timing, intervals, FLOPs and bytes, result rows, one HTML report.

The usual order in a bench::

    from mintage.measure import Pairs, Result, append_results, interleaved, timed
    from mintage.measure.environment import environment

    pairs = Pairs()
    for prompt, arm in interleaved(prompts, arms):
        answer, seconds = timed(lambda: arms[arm](prompt))
        pairs.add(prompt.name, arm, seconds)
    low, speedup, high = pairs.ratio("plain", "token-recycling")

Looking at this front door imports neither torch nor jinja2; `mintage.measure.environment` is reached by its module,
because the function has the module's name.
"""

from mintage.catalog import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    Interval="mintage.measure.statistics:Interval",
    bootstrap="mintage.measure.statistics:bootstrap",
    bootstrap_ratio="mintage.measure.statistics:bootstrap_ratio",
    Pairs="mintage.measure.timing:Pairs",
    Timings="mintage.measure.timing:Timings",
    interleaved="mintage.measure.timing:interleaved",
    paired_time="mintage.measure.timing:paired_time",
    timed="mintage.measure.timing:timed",
    count_flops="mintage.measure.cost:count_flops",
    memory_bandwidth="mintage.measure.cost:memory_bandwidth",
    peak_memory="mintage.measure.cost:peak_memory",
    peak_tensor_bytes="mintage.measure.cost:peak_tensor_bytes",
    tensor_bytes="mintage.measure.cost:tensor_bytes",
    Result="mintage.measure.result:Result",
    append_results="mintage.measure.result:append_results",
    newest="mintage.measure.result:newest",
    read_results="mintage.measure.result:read_results",
    Figure="mintage.measure.figure:Figure",
    write_report="mintage.measure.report:write_report",
)
