"""One self-contained page about a run: `report(run_dir)`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.report.facts import Comparison as Comparison
    from hllm_jax.report.facts import Facts as Facts
    from hllm_jax.report.facts import RowToken as RowToken
    from hllm_jax.report.facts import Sample as Sample
    from hllm_jax.report.facts import Score as Score
    from hllm_jax.report.facts import Source as Source
    from hllm_jax.report.facts import Step as Step
    from hllm_jax.report.facts import read_facts as read_facts
    from hllm_jax.report.figures import MissingPlots as MissingPlots
    from hllm_jax.report.page import report as report
