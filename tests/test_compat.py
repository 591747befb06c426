"""Patches of other libraries: what each one replaces is still there, and the patch has its effect.

A test here that fails after an upgrade says which function of `r1nb.compat` has to be read again.
"""

import inspect
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from r1nb import compat
from r1nb.settings import InputError


def needs(library):
    return pytest.mark.skipif(find_spec(library) is None, reason=f"needs {library}")


def python(code):
    "Run `code` in another process, as its patches would stay in this one."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def patched(monkeypatch):
    "Call it with a patch, its arguments and attribute=owner: it is undone after the test."
    used = []

    def apply(patch, *arguments, **owners):
        for attribute, owner in owners.items():
            monkeypatch.setattr(owner, attribute, inspect.getattr_static(owner, attribute))
        patch.__wrapped__.cache_clear()
        used.append(patch)
        patch(*arguments)

    yield apply
    for patch in used:
        patch.__wrapped__.cache_clear()


@pytest.fixture(autouse=True)
def gradients_stay_on():
    "Importing lighteval's transformers backend switches gradients off for the whole process."
    yield
    if torch := sys.modules.get("torch"):
        torch.set_grad_enabled(True)


# ---- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(compat.PATCHES))
def test_a_patch_was_read_against_what_is_installed(name):
    versions = compat.PATCHES[name]
    there = {library: v for library, v in versions.items() if compat.installed(library)}
    assert compat.mismatch(there) == ""


@pytest.mark.parametrize("name", sorted(compat.PATCHES))
def test_a_patch_is_not_applied_to_another_version(name, monkeypatch):
    patch = getattr(compat, name)
    monkeypatch.setattr(compat, "installed", lambda library: "0.0.1")
    compat._warn.cache_clear()
    arguments = [None] * len(inspect.signature(patch).parameters)
    text = rf"r1nb\.compat\.{name} was written for \w+ [\d.]+, and 0\.0\.1 is installed"
    if inspect.getclosurevars(patch).nonlocals["otherwise"] is None:
        with pytest.raises(InputError, match=text):
            patch(*arguments)
    else:
        with pytest.warns(UserWarning, match=f"{text}: left out"):
            patch(*arguments)


# ---- TRL ---------------------------------------------------------------------------------------


def test_score_completions_only(tmp_path, monkeypatch):
    import torch
    import trl.trainer.utils as utils

    from r1nb.models import ModelChoice, load_model, tiny_model

    source = inspect.getsource(utils.add_fused_lm_head)
    assert "compact = _use_triton(hidden_states.device)" in source
    assert "hidden_states[mask] if compact else" in source
    assert list(inspect.signature(utils._use_triton).parameters) == ["device"]

    model = load_model(ModelChoice(str(tiny_model(tmp_path)), dtype="float32")).cpu()
    utils.add_fused_lm_head(model)
    ids = torch.randint(3, 100, (2, 12))
    labels = ids.clone()
    labels[:, :7] = -100
    scored, head = [], utils._ChunkedLogProbFunction.apply

    def spy(hidden, *rest):
        scored.append(len(hidden))
        return head(hidden, *rest)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", spy)
    before = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    use_triton = utils._use_triton
    with compat.score_completions_only():
        after = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert scored == [22, 10] and utils._use_triton is use_triton
    torch.testing.assert_close(before, after)


def test_vllm_left_out():
    python(
        "import inspect, sys\n"
        "from r1nb.compat import vllm_left_out\n"
        "import trl.import_utils as utils\n"
        "assert list(inspect.signature(utils.is_vllm_available).parameters) == ['min_version']\n"
        "with vllm_left_out():\n"
        "    from trl import GRPOTrainer\n"
        "    from trl.generation import vllm_client, vllm_generation\n"
        "assert 'vllm' not in sys.modules\n"
        "for module in (vllm_client, vllm_generation):\n"
        "    assert 'if is_vllm_available():\\n    from vllm' in inspect.getsource(module)\n"
    )


@pytest.mark.vllm
@needs("vllm")
def test_fetch_vllm():
    python(
        "from r1nb.compat import fetch_vllm, vllm_left_out\n"
        "with vllm_left_out():\n"
        "    import trl.trainer.grpo_trainer as trainer\n"
        "import trl.generation.vllm_generation as generation, vllm\n"
        "assert not hasattr(generation, 'LLM')\n"
        "fetch_vllm()\n"
        "assert generation.LLM is vllm.LLM\n"
        "assert trainer.VLLMGeneration is generation.VLLMGeneration\n"
    )


# ---- transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1], ids=["terminal", "notebook"])
def test_shorten_progress(number, capsys, monkeypatch):
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import CallbackHandler
    from transformers.utils import notebook

    theirs, ours = (compat._terminal_bar, compat._notebook_bar)[number]()
    handler = CallbackHandler([theirs], None, None, None, None)
    trainer = SimpleNamespace(
        callback_handler=handler,
        add_callback=handler.add_callback,
        remove_callback=handler.remove_callback,
    )
    compat.shorten_progress(trainer, lambda logs: {"loss": "0.12"} if "loss" in logs else {})
    assert [type(c) for c in handler.callbacks] == [ours]

    shown = []
    monkeypatch.setattr(notebook.disp, "HTML", shown.append)
    args = TrainingArguments("unused", use_cpu=True, eval_strategy="no", report_to="none")
    state, control = TrainerState(max_steps=2, epoch=0.0, num_train_epochs=1), TrainerControl()
    state.is_world_process_zero = True
    handler.on_train_begin(args, state, control)
    for state.global_step in (1, 2):
        handler.on_log(args, state, control, {"loss": 0.1234, "learning_rate": 1e-5})
        handler.on_step_end(args, state, control)
    handler.on_train_end(args, state, control)
    printed = capsys.readouterr().err + "".join(shown)
    assert ("loss=0.12", "loss 0.12")[number] in printed
    assert "learning_rate" not in printed and "Training Loss" not in printed


def test_unsharded():
    from transformers.integrations import deepspeed

    assert "global _hf_deepspeed_config_weak_ref" in inspect.getsource(
        deepspeed.unset_hf_deepspeed_config
    )
    assert "_hf_deepspeed_config_weak_ref()" in inspect.getsource(
        deepspeed.is_deepspeed_zero3_enabled
    )

    class Zero3:
        def is_zero3(self):
            return True

    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with pytest.raises(KeyError), compat.unsharded():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            raise KeyError
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


# ---- DeepSpeed, vLLM, distilabel ---------------------------------------------------------------


@needs("deepspeed")
def test_leave_out_shm_comm():
    out = python(
        "import importlib, inspect\n"
        "comm = importlib.import_module('deepspeed.comm.torch')\n"
        "assert '__compatible_ops__.get(builder.NAME' in inspect.getsource(comm.build_shm_op)\n"
        "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as builder\n"
        "from r1nb.compat import leave_out_shm_comm\n"
        "leave_out_shm_comm()\n"
        "assert comm.deepspeed.ops.__compatible_ops__[builder.NAME] is False\n"
        "print('built:', comm.build_shm_op())"
    )
    assert "built: None" in out


@pytest.mark.vllm
@needs("vllm")
def test_end_engine():
    "That it frees memory is seen where engines run: test_sampling and test_data."
    python(
        "import inspect, vllm\n"
        "from vllm.v1.engine.core_client import EngineCoreClient\n"
        "from vllm.v1.engine.llm_engine import LLMEngine\n"
        "assert callable(EngineCoreClient.shutdown)\n"
        "assert 'self.engine_core = EngineCoreClient' in inspect.getsource(LLMEngine)\n"
        "assert 'self.llm_engine = ' in inspect.getsource(vllm.LLM)\n"
    )


@pytest.mark.vllm
@needs("vllm")
@needs("distilabel")
def test_modernise_distilabel():
    "A batch through distilabel's class with an engine that only notes how it is called."
    python(
        "import inspect, vllm\n"
        "from types import SimpleNamespace as S\n"
        "from distilabel.models.llms.vllm import vLLM\n"
        "from r1nb.compat import modernise_distilabel\n"
        "assert 'from vllm import SamplingParams' in inspect.getsource(vLLM.generate)\n"
        "assert 'logits_processors=logits_processors' in inspect.getsource(vLLM.generate)\n"
        "assert 'del self._model.llm_engine' in inspect.getsource(vLLM._cleanup_vllm_model)\n"
        "modernise_distilabel(lambda: 'float32')\n"
        "log = []\n"
        "class Engine:\n"
        "    llm_engine = S(engine_core=S(shutdown=lambda: log.append('ended')))\n"
        "    def generate(self, prompts, sampling_params, use_tqdm):\n"
        "        log.append(sampling_params.max_tokens)\n"
        "        done = S(text='4', token_ids=[7], logprobs=None, finish_reason='stop')\n"
        "        return [S(prompt_logprobs=None, prompt_token_ids=[1], outputs=[done])]\n"
        "llm = vLLM(model='none')\n"
        "llm._model = Engine()\n"
        "llm._tokenizer = S(encode=list, apply_chat_template=lambda m, **o: m[0]['content'])\n"
        "chat = [{'role': 'user', 'content': '2 + 2'}]\n"
        "(said,) = llm.generate([chat], max_new_tokens=5)\n"
        "assert said['generations'] == ['4'], said\n"
        "llm._cleanup_vllm_model()\n"
        "assert log == [5, 'ended'], log\n"
        "assert vllm.SamplingParams.__name__ == 'SamplingParams'\n"
    )


@pytest.mark.vllm
@needs("vllm")
def test_vllm_rollouts_on_cpu():
    "What it replaces is still there; tests/test_vllm.py shows the effect."
    python(
        "import inspect\n"
        "from r1nb.compat import fetch_vllm, vllm_rollouts_on_cpu\n"
        "import trl.trainer.grpo_trainer as trainer\n"
        "fetch_vllm()\n"
        "from trl.generation import vllm_client, vllm_generation\n"
        "generation, client = vllm_generation.VLLMGeneration, vllm_client.VLLMClient\n"
        "assert 'self.llm = LLM(' in inspect.getsource(generation._init_vllm)\n"
        "source = inspect.getsource(generation.sync_weights)\n"
        "for text in ('self._iter_named_params()', 'self.vllm_client.update_named_params(',\n"
        "             'self.llm.llm_engine.model_executor.driver_worker.model_runner'):\n"
        "    assert text in source\n"
        "source = inspect.getsource(client.init_communicator)\n"
        "assert 'which needs a CUDA device' in source and 'get_server_info' in source\n"
        "names = list(inspect.signature(client.update_named_params).parameters)\n"
        "assert names == ['self', 'metadata', 'named_params']\n"
        "from vllm.v1.worker.gpu_model_runner import GPUModelRunner\n"
        "names = inspect.signature(GPUModelRunner.reload_weights).parameters\n"
        "assert 'weights_iterator' in names\n"
        "from vllm.v1.worker.worker_base import WorkerBase\n"
        "assert not hasattr(WorkerBase, 'load_weights_from_file')\n"
        "vllm_rollouts_on_cpu()\n"
        "assert trainer.VLLMGeneration.sync_weights.__module__ == 'r1nb.compat'\n"
        "client = object.__new__(client)\n"
        "client.base_url = 'http://x'\n"
        "client.get_server_info = lambda: {'parallel_config': {'worker_extension_cls': ''}}\n"
        "try:\n"
        "    client.init_communicator()\n"
        "except Exception as e:\n"
        "    assert '--worker-extension-cls r1nb.compat.WeightsFromFile' in str(e)\n"
        "else:\n"
        "    raise AssertionError('not refused')\n"
    )


# ---- lighteval ---------------------------------------------------------------------------------

lighteval = needs("lighteval")


@lighteval
def test_load_custom_tasks_only(patched, monkeypatch):
    from lighteval.tasks.registry import Registry

    assert "load_all_task_configs(\n" in inspect.getsource(Registry.__init__)
    module = SimpleNamespace(TASKS_TABLE=[SimpleNamespace(name="ours")])
    monkeypatch.setitem(sys.modules, "tasks_of_a_test", module)
    patched(compat.load_custom_tasks_only, "tasks_of_a_test", load_all_task_configs=Registry)
    assert list(Registry.load_all_task_configs()) == ["ours"]
    assert list(Registry.load_all_task_configs(custom_tasks="tasks_of_a_test")) == ["ours"]


@lighteval
def test_read_tasks_with(patched, monkeypatch):
    from lighteval.tasks import lighteval_task

    Task = lighteval_task.LightevalTask
    assert "self.download_dataset_worker(self)" in inspect.getsource(lighteval_task)
    assert "LightevalTask.download_dataset_worker" in inspect.getsource(Task.load_datasets)
    monkeypatch.setattr(lighteval_task, "load_dataset", lambda **options: options["path"])

    def read(task):
        return "local" if task == "ours" else None

    patched(compat.read_tasks_with, read, download_dataset_worker=Task)
    assert Task.download_dataset_worker("ours") == "local"
    theirs = SimpleNamespace(
        dataset_path="hub", dataset_config_name=None, dataset_revision=None, dataset_filter=None
    )
    assert Task.download_dataset_worker(theirs) == "hub"


@lighteval
def test_sample_at_temperature(patched):
    from lighteval.models.model_input import GenerationParameters
    from lighteval.models.transformers import transformers_model

    source = inspect.getsource(transformers_model)
    assert ".to_transformers_dict()" in source
    assert 'generation_config["do_sample"] = True' not in source  # then it is mended
    patched(compat.sample_at_temperature, to_transformers_dict=GenerationParameters)
    hot = GenerationParameters(temperature=0.6, top_p=0.95).to_transformers_dict()
    cold = GenerationParameters(temperature=0, top_p=0.95).to_transformers_dict()
    assert (hot["do_sample"], hot["top_p"]) == (True, 0.95)
    assert cold["do_sample"] is False and "top_p" not in cold


@lighteval
def test_cache_outside_model(patched, tmp_path):
    from lighteval.models.transformers.transformers_model import TransformersModelConfig
    from lighteval.utils.cache_management import SampleCache

    source = inspect.getsource(SampleCache.__init__)
    assert "self.model_config.cache_dir)) / self.model_config.model_name" in source
    patched(compat.cache_outside_model, __init__=SampleCache)
    config = TransformersModelConfig(
        model_name=str(tmp_path / "model"), cache_dir=str(tmp_path / "cache")
    )
    assert (tmp_path / "cache") in SampleCache(config).cache_dir.parents
    assert not (tmp_path / "model").exists()


@pytest.mark.vllm
@lighteval
@needs("vllm")
def test_modernise_lighteval_vllm():
    python(
        "import inspect, sys\n"
        "from types import SimpleNamespace as S\n"
        "from r1nb.compat import modernise_lighteval_vllm\n"
        "modernise_lighteval_vllm()\n"
        "import vllm\n"
        "from lighteval.models.vllm import vllm_model\n"
        "source = inspect.getsource(vllm_model)\n"
        "for text in ('is_package_available(\"vllm\")', 'prompt_token_ids=', 'swap_space',\n"
        "             'from vllm.transformers_utils.tokenizer import get_tokenizer',\n"
        "             'self.model = self._create_auto_model(config)'):\n"
        "    assert text in source, text\n"
        "assert issubclass(vllm_model.LLM, vllm.LLM) and vllm_model.LLM is not vllm.LLM\n"
        "seen = {}\n"
        "def generate(self, prompts, params, **options):\n"
        "    seen.update(p=prompts, l=params.logprobs)\n"
        "vllm.LLM.generate = generate\n"
        "llm = object.__new__(vllm_model.LLM)\n"
        "llm.generate(prompt_token_ids=[[1, 2]], sampling_params=S(max_tokens=5, logprobs=0))\n"
        "assert seen == {'p': [{'prompt_token_ids': [1, 2]}], 'l': None}, seen\n"
    )


# ---- papermill, IPython ------------------------------------------------------------------------


def test_import_papermill():
    from importlib.metadata import files

    (source,) = [f for f in files("jsonschema") if f.name == "_format.py"]
    assert "with suppress(ImportError):\n        from rfc3987_syntax import" in source.read_text()
    python(
        "import sys\n"
        "from r1nb.compat import import_papermill\n"
        "assert import_papermill() is sys.modules['papermill']\n"
        "assert 'jsonschema' in sys.modules and 'rfc3987_syntax' not in sys.modules\n"
    )


def test_write_notebooks_with(patched, tmp_path):
    from papermill.iorw import LocalHandler, papermill_io

    assert list(inspect.signature(LocalHandler.write).parameters) == ["self", "buf", "path"]
    handler, written = papermill_io.get_handler("local"), []
    try:
        patched(compat.write_notebooks_with, lambda handler, *rest: written.append(rest))
        papermill_io.write("text", str(tmp_path / "a.ipynb"))
    finally:
        vars(handler).pop("write", None)
    assert written == [("text", str(tmp_path / "a.ipynb"))] and not any(tmp_path.iterdir())


def test_restore_shell():
    from traitlets.config import SingletonConfigurable

    class Outer(SingletonConfigurable):
        pass

    class Inner(Outer):
        pass

    one = Inner.instance()
    Inner.clear_instance()
    assert not Outer.initialized()
    compat.restore_shell(one)
    assert Outer.instance() is one and Inner.instance() is one
    assert "_instance" not in vars(SingletonConfigurable) or not SingletonConfigurable._instance
    Inner.clear_instance()
