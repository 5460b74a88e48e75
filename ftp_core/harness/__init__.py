"""A pruned model in lm-evaluation-harness.

Importing this module makes the name `ftp` known to lm-eval. Versions after 0.4.13 import it by themselves, by the entry
points `lm_eval.models`; for 0.4.13, which reads none, docs/lm-eval.md names two ways.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from ftp_core.errors import DataError, ModelError
from ftp_core.extras import install_extra
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.model.configuration import FTPConfig
from ftp_core.skipping.rotary import rotary_lengths
from ftp_core.text.boundary import divide
from ftp_core.text.encoding import pad_right

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM, eval_logger
    from lm_eval.models.utils import Collator
except ImportError as error:
    raise ModelError(
        f"lm-evaluation-harness is not installed ({error}): {install_extra('eval')} installs it."
    ) from error

# Texts (None to leave the response cache alone), ids of the context, ids of the continuation.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
# Indices of the requests that a row serves, ids of the context, ids of the continuation.
_Row = tuple[list[int], list[int], list[int]]

# Options by which lm-eval changes a dense model after loading it, which it cannot do inside a pruned one.
_FOR_DENSE_MODELS = {
    "peft": "merge the adapter and prune what that gives, as `ftp-search run --adapter DIR` does; one that was trained "
    "around a pruned model is merged by merge_and_unload() of the peft model, and saved with save_pretrained",
    **dict.fromkeys(("delta", "autogptq", "gptqmodel", "gguf_file"), "apply it to the dense model, and prune that"),
}


@register_model("ftp")
class FTPLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A model that `FTPForCausalLM.save_pretrained` wrote, with its tokenizer beside it.

    What is scored is never part of the prompt, so that its tokens have no say in which tokens of the prompt are kept:

    - `loglikelihood` and multiple choice: the request's context is the prompt, the choice is the completion. They are
      cut into tokens as `ftp_core.encode` does, where lm-eval's own loses text of a token that spans both. A request
      that is too long loses its beginning, as in lm-eval; the prompt is what remains of the context.
    - `loglikelihood_rolling` (perplexity of a text): a window of text is the completion, and its prompt the one token
      that lm-eval puts before it, which skips nothing: this is the dense model's perplexity, with a warning. Only the
      last window of a text longer than the model's context has a prompt, of text that was scored already.
    - `generate_until`: the whole text is the prompt.

    Takes the arguments of lm-eval's `hf`, except those that change weights after loading. `revision` is that of the
    pruned model; where its dense model lies elsewhere, `base_model` and `base_revision` say where.

    Args:
        pretrained: Directory or Hub id of a pruned model, or the model itself.
        backend: Only "causal"; "default" is the same.
        kwargs: See lm-eval's `HFLM`.

    Raises:
        ModelError: There is no model, it is not a pruned one, or an argument is for dense models only.
    """

    def __init__(self, pretrained: str | PreTrainedModel, backend: str = "causal", **kwargs: Any) -> None:
        if backend not in ("default", "causal"):
            raise ModelError(f"backend is {backend!r}, but pruned models are causal: leave it out.")
        for name, advice in _FOR_DENSE_MODELS.items():
            if kwargs.get(name):
                raise ModelError(f"A pruned model takes no {name}: {advice}.")
        if not isinstance(pretrained, str | FTPForCausalLM):
            raise ModelError(
                f"A {type(pretrained).__name__} is not a pruned model: FTPForCausalLM.from_dense makes one."
            )
        super().__init__(pretrained, backend="causal", **kwargs)

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        """Reads the configuration, before anything else is read."""
        try:
            super()._get_config(pretrained, **kwargs)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"No pruned model at {pretrained!r}: expected a directory that FTPForCausalLM.save_pretrained wrote, "
                f"or the id of such a model on the Hugging Face Hub ({' '.join(str(error).split())[:300]})."
            ) from error
        if not isinstance(self._config, FTPConfig):
            raise ModelError(
                f"{pretrained!r} is a model of type {self._config.model_type!r}, not a pruned one: evaluate it with "
                "--model hf, or prune it with FTPForCausalLM.from_dense and save_pretrained."
            )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the class and lm-eval; all choices of an item are divided from its prompt at the same place."""
        items: dict[Any, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            # Requests made by hand may name no item: each is then its own.
            known = request.doc_id is not None
            items[(request.task_name, request.doc_id, request.args[0]) if known else index].append(index)
        encoded: dict[int, _Request] = {}
        for indices in tqdm(items.values(), desc="Tokenizing inputs", disable=disable_tqdm):
            pairs = [requests[index].args for index in indices]
            prompt, continuations = self._encode_item(pairs[0][0], [continuation for _, continuation in pairs])
            for index, pair, continuation in zip(indices, pairs, continuations, strict=True):
                encoded[index] = (pair, prompt, continuation)
        return self._loglikelihood_tokens([encoded[index] for index in range(len(requests))], disable_tqdm=disable_tqdm)

    def _encode_item(self, context: str, continuations: list[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of a context and of its continuations; lm-eval's prefix token is a context that has no token left."""
        special = self.add_bos_token is not False and context != ""
        divided = divide(self.tokenizer, context, continuations, special)
        rest = [list(ids) for ids in divided.continuations]
        if divided.prompt:
            return list(divided.prompt), rest
        prefix = self.prefix_token_id
        return [prefix], [ids[1:] if ids[:1] == [prefix] else ids for ids in rest]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """See the class and lm-eval."""
        if any(self.model.schedule):
            eval_logger.warning(
                "A text without a prompt skips nothing, so its perplexity is nearly the dense model's: "
                "ftp_core.QualitySet measures the perplexity of completions behind prompts that skip."
            )
        likelihoods: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return likelihoods

    def _loglikelihood_tokens(
        self, requests: list[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Computes log-likelihoods of continuations, and whether greedy decoding would write them.

        lm-eval's own hands the model contexts with their continuations without saying where these begin, and shares
        results between requests of equal tokens even if they are divided elsewhere.
        """
        rows = _rows(requests)
        self._check(requests)
        if self.batch_size == "auto" and override_bs is None:
            # Found anew, because requests of another task may be longer.
            self.batch_sizes: dict[int, int] = {}
            chunks = Collator.get_chunks(rows, fn=self._batch_scheduler)
        else:
            chunks = Collator.get_chunks(rows, n=override_bs if self.batch_size == "auto" else self.batch_size)
        answers: dict[int, tuple[float, bool]] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as progress:
            for chunk in chunks:
                for (indices, _, _), log_probs in zip(chunk, self._log_probs(chunk), strict=True):
                    greedy = log_probs.argmax(-1)
                    for index in indices:
                        text, _, continuation = requests[index]
                        ids = torch.tensor(continuation, device=log_probs.device)
                        picked = log_probs.gather(-1, ids[:, None])
                        answers[index] = (float(picked.sum()), bool((greedy == ids).all()))
                        if text is not None:
                            self.cache_hook.add_partial("loglikelihood", text, answers[index])
                        progress.update()
        return [answers[index] for index in range(len(requests))]

    def _check(self, requests: list[_Request]) -> None:
        for text, _, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                of = "" if text is None else f" {text[1]!r}"
                raise DataError(
                    f"The continuation{of} is {len(continuation)} tokens long, but must have between 1 and "
                    f"{self.max_length}, which is what the model reads at once."
                )
        n_cut = sum(len(context) + len(rest) > self.max_length + 1 for _, context, rest in requests)
        if n_cut:
            eval_logger.warning(
                f"{n_cut} of {len(requests)} requests are longer than the {self.max_length} tokens that the model "
                "reads at once: the beginnings of their contexts are cut off."
            )

    def _log_probs(self, rows: list[_Row]) -> list[Tensor]:
        """Computes log-probabilities `[C, V]` of each row's continuation of C tokens."""
        inputs, prompts = [], []
        for _, context, continuation in rows:
            excess = max(0, len(context) + len(continuation) - (self.max_length + 1))
            # Nothing is predicted from the last token.
            inputs.append((context + continuation)[excess:-1])
            prompts.append(len(context) - excess)
        # Padding stands last, where causality hides it from every token: no mask is needed.
        ids = pad_right(inputs, 0).to(self.device)
        first = min(prompts) - 1
        with (
            torch.no_grad(),
            # Each row as if it were alone, whatever it shares a batch with.
            rotary_lengths(self.model.base, [len(used) for used in inputs]),
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
        ):
            logits = self.model(
                input_ids=ids,
                prompt_length=torch.tensor(prompts, device=self.device),
                logits_to_keep=ids.shape[1] - first,
                use_cache=False,
            ).logits
        return [
            F.log_softmax(row[start - 1 - first : len(used) - first], dim=-1, dtype=self.softmax_dtype)
            for row, start, used in zip(logits, prompts, inputs, strict=True)
        ]

    def get_model_info(self) -> dict[str, Any]:
        """Adds the settings of the pruning to what lm-eval writes beside the results."""
        info: dict[str, Any] = super().get_model_info()
        return info | {
            "ftp_schedule": self.model.schedule.to_json(),
            "ftp_overall_sparsity": self.model.schedule.overall,
            "ftp_router": self.model.router.kind,
            "ftp_decode_sparsity": self.model.decode_sparsity,
            "ftp_keep_first": self.model.keep_first,
        }


def _rows(requests: list[_Request]) -> list[_Row]:
    """Makes the rows that the model has to read, the longest first.

    Requests that differ in the last token of their continuations only, as one-token choices do, share a row.
    """
    shared: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
    for index, (_, context, continuation) in enumerate(requests):
        shared[tuple(context), tuple(continuation[:-1])].append(index)
    rows = [(indices, requests[indices[0]][1], requests[indices[0]][2]) for indices in shared.values()]
    # The first batch is the largest one: it runs out of memory at once or not at all.
    return sorted(rows, key=lambda row: (-len(row[1]) - len(row[2]), row[1], row[2]))
