"""Training: the step, the loop around it, optimizers, checkpoints, runs and their metrics."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.parallel.state import TrainState as TrainState
    from hllm_jax.training.checkpoints import CheckpointError as CheckpointError
    from hllm_jax.training.checkpoints import Checkpoints as Checkpoints
    from hllm_jax.training.checkpoints import Manifest as Manifest
    from hllm_jax.training.config import CheckpointConfig as CheckpointConfig
    from hllm_jax.training.config import EvalConfig as EvalConfig
    from hllm_jax.training.config import LogConfig as LogConfig
    from hllm_jax.training.config import OptimizerConfig as OptimizerConfig
    from hllm_jax.training.config import RunConfig as RunConfig
    from hllm_jax.training.config import SampleConfig as SampleConfig
    from hllm_jax.training.config import ScheduleConfig as ScheduleConfig
    from hllm_jax.training.config import TrainConfig as TrainConfig
    from hllm_jax.training.config import check_sections as check_sections
    from hllm_jax.training.head import with_head as with_head
    from hllm_jax.training.head import with_score as with_score
    from hllm_jax.training.hooks import Hook as Hook
    from hllm_jax.training.hooks import Moment as Moment
    from hllm_jax.training.hooks import evaluate as evaluate
    from hllm_jax.training.hooks import profile as profile
    from hllm_jax.training.hooks import sample as sample
    from hllm_jax.training.hooks import save as save
    from hllm_jax.training.hooks import track as track
    from hllm_jax.training.loop import NonFiniteError as NonFiniteError
    from hllm_jax.training.loop import train as train
    from hllm_jax.training.measure import make_evaluation as make_evaluation
    from hllm_jax.training.objective import check_objective as check_objective
    from hllm_jax.training.optimizers import Optimizer as Optimizer
    from hllm_jax.training.optimizers import make_optimizer as make_optimizer
    from hllm_jax.training.platform import PlatformError as PlatformError
    from hllm_jax.training.pretrained import OpenPretrained as OpenPretrained
    from hllm_jax.training.pretrained import Pretrained as Pretrained
    from hllm_jax.training.pretrained import begin as begin
    from hllm_jax.training.pretrained import begin_with_head as begin_with_head
    from hllm_jax.training.pretrained import load_pretrained as load_pretrained
    from hllm_jax.training.pretrained import make_base as make_base
    from hllm_jax.training.pretrained import open_pretrained as open_pretrained
    from hllm_jax.training.run import Run as Run
    from hllm_jax.training.run import RunError as RunError
    from hllm_jax.training.schedules import make_schedule as make_schedule
    from hllm_jax.training.step import TrainStep as TrainStep
    from hllm_jax.training.step import make_eval_step as make_eval_step
    from hllm_jax.training.step import make_train_step as make_train_step
    from hllm_jax.training.teacher import beside_teacher as beside_teacher
    from hllm_jax.training.teacher import build_teacher as build_teacher
    from hllm_jax.training.teacher import check_teacher as check_teacher
    from hllm_jax.training.teacher import is_student as is_student
    from hllm_jax.training.teacher import of_student as of_student
    from hllm_jax.training.teacher import read_teacher as read_teacher
    from hllm_jax.training.teacher import tokenizer_of_teacher as tokenizer_of_teacher
