"""GPT-2 (Radford et al. 2019) over one flat parameter buffer and one flat gradient buffer."""

from dataclasses import asdict

import numpy as np

from . import _checks, _core
from ._generation import Sampler
from .gpt_config import GPTConfig
from .layout import Layout
from .plan import plan


class GPT:
    """GPT-2: pre-LN blocks, learned positions, tanh-GELU, tied head, biases.

    Args:
        config: a :class:`GPTConfig`.
        seed: of the initial parameters and of the dropout masks, in ``[0, 2**64)``.
        device: ``"cpu"``.
        recompute: keep only each layer's input in a training pass, and compute the rest of its
            forward pass again in the backward pass: the same bits in up to a fifth more
            time, with a sixteenth of each layer's activations and one layer's whole: a quarter in
            all with 6 layers, a ninth with 24.

    Attributes:
        params, grads: flat float32 NumPy arrays of ``num_params`` elements.
        grad_partials: :class:`flatstep.GradPartials` of ``grads``, or None; see
            :meth:`forward_backward`, which rewrites the same object. Set it to None when you change
            ``grads`` yourself.
        recompute: as given; assign to it to change the passes from then on.
        layout: names, shapes and offsets; the names and the orientation of the weights are those of
            Hugging Face GPT-2. 1-D tensors (biases, norms) have weight decay 0.

    ``model[name]`` is a view of one parameter tensor. The dropout masks of a training pass are
    those of :func:`flatstep.dropout_mask` with the model's seed, the pass's ``step`` and the sites:
    0 the embedding sum ``[B, T, C]``; in layer l ``1 + 3 l`` the attention weights
    ``[B, H, T, T]``, ``2 + 3 l`` the attention output and ``3 + 3 l`` the feed-forward output,
    ``[B, T, C]``.

    Raises:
        ValueError, TypeError: the configuration or an argument is wrong; the message names it.
    """

    def __init__(self, config, seed=0, device="cpu", recompute=False):
        if not isinstance(config, GPTConfig):
            raise TypeError(f"config: got {type(config).__name__}, expected a GPTConfig")
        if device != "cpu":
            raise ValueError(
                f"device: got {device!r}, expected 'cpu' (this version has no CUDA kernels)"
            )
        self.config = config
        self.seed = _checks.unsigned64(seed, "seed")
        self.recompute = bool(recompute)
        self._core = _core.Gpt(**asdict(config))
        self.layout = Layout._from_core(self._core.layout)
        self.params = np.empty(self.layout.size, np.float32)
        self.grads = np.zeros(self.layout.size, np.float32)
        self.grad_partials, self._partials = None, _core.GradPartials()
        self._views = self.layout.views(self.params)
        self._core.initialize(self.params, self.seed)

    @classmethod
    def from_pretrained(cls, folder, *, seed=0, dropout=None, vocab_size=None, device="cpu"):
        """The model in a folder of Hugging Face GPT-2: ``config.json`` with safetensors.

        Takes ``model.safetensors`` or shards with ``model.safetensors.index.json``; names with and
        without ``transformer.``; float32, bfloat16 and float16, which become float32;
        ``lm_head.weight`` if it equals the embedding; stored causal masks are passed over.

        Args:
            folder: a path.
            seed: of the dropout masks.
            dropout: None takes that of ``config.json``, whose ``embd_pdrop``, ``attn_pdrop`` and
                ``resid_pdrop`` must agree; a number replaces all three.
            vocab_size: rows of the embedding that the model has. None takes the stored ones, which
                must be as many as ``config.json`` says, as Hugging Face demands. Fewer leave the
                last ones out: padding, for example 50304 to 50257. More append the mean of the
                stored rows, so that their logits are the mean of the others'.
            device: as for :class:`GPT`.

        Raises:
            flatstep.errors.PretrainedError: a ValueError that names the file and the key or tensor:
                missing, damaged, of another type or shape, not finite, or not of this GPT-2
                (another activation, untied head, another inner width, ...).
            ValueError, TypeError: an argument is wrong.
        """
        from . import pretrained  # which needs this class

        if vocab_size is not None and _checks.integer(vocab_size, "vocab_size") < 1:
            raise ValueError(f"vocab_size: got {vocab_size}, expected a number >= 1")
        if dropout is not None and not 0 <= _checks.number(dropout, "dropout") < 1:
            raise ValueError(f"dropout: got {dropout}, expected a probability in [0, 1)")
        return pretrained.load(
            folder, seed=seed, dropout=dropout, vocab_size=vocab_size, device=device
        )

    def save_pretrained(self, folder, *, max_shard_size="5GB", overwrite=False):
        """Writes a folder that Hugging Face's ``GPT2LMHeadModel.from_pretrained`` loads.

        Writes ``config.json`` and float32 ``model.safetensors``, or shards and their index, under
        other names, then renames them; ``config.json`` is the last, so a folder that has it is
        whole. Other files of the folder stay.

        Args:
            folder: a path; made if it does not exist.
            max_shard_size: bytes of a file, an int or a text such as ``"5GB"``, ``"300MB"`` or
                ``"2GiB"``. A larger tensor has a file of its own.
            overwrite: replace the configuration and weights that the folder holds.

        Raises:
            flatstep.errors.PretrainedError: the folder holds a model and ``overwrite`` is not set.
            ValueError: a parameter is not finite, or an argument is wrong.
            OSError: the disk refuses.
        """
        from . import pretrained

        pretrained.save(self, folder, max_shard_size=max_shard_size, overwrite=overwrite)

    @property
    def num_params(self):
        """Number of parameters."""
        return self.layout.size

    def plan(self, batch, length, *, optimizer="adamw", optimizer_state="full", momentum=True):
        """The bytes that training this model takes with batches ``[batch, length]``: a
        :class:`flatstep.Plan`. Arguments as in :func:`flatstep.plan`."""
        return plan(
            self.config,
            batch,
            length,
            optimizer=optimizer,
            optimizer_state=optimizer_state,
            momentum=momentum,
            recompute=self.recompute,
        )

    def __getitem__(self, name):
        """A view of the parameter tensor of that name. Raises KeyError."""
        if name not in self._views:
            raise KeyError(f"name: got {name!r}, expected a tensor of this model")
        return self._views[name]

    def forward_backward(
        self,
        tokens,
        targets,
        *,
        label_smoothing=0.0,
        step=0,
        accumulate=False,
        loss_divisor=None,
        partials=True,
    ):
        """Mean cross-entropy with dropout; fills ``grads``.

        Args:
            tokens: int32 or int64 ``[B, T]``, T at most ``block_size``.
            targets: the same shape; -100 is ignored.
            label_smoothing: in ``[0, 1)``.
            step: number of this forward pass, in ``[0, 2**48)``: it chooses the dropout masks.
            accumulate: add to ``grads`` instead of overwriting them.
            loss_divisor: divides the summed loss and gradient; None is the number of valid targets.
                With accumulation, give the number of valid targets of the whole batch.
            partials: keep the sums of squares of ``grads`` in ``grad_partials``, for
                ``optimizer.step(model.grads, partials=model.grad_partials)`` with the model's
                layout. Of several passes that accumulate, only the last needs it. Else
                ``grad_partials`` is None.

        Returns:
            The loss.

        Raises:
            IndexError: a token or target is outside the vocabulary.
            ValueError, TypeError: another argument is wrong. ``grads`` is unchanged in either case.
        """
        if loss_divisor is None:
            loss_divisor = 0.0
        else:
            loss_divisor = _checks.number(loss_divisor, "loss_divisor")
            if not loss_divisor > 0:
                raise ValueError(f"loss_divisor: got {loss_divisor}, expected a number > 0")
        if type(label_smoothing) is not float:
            label_smoothing = _checks.number(label_smoothing, "label_smoothing")
        if type(step) is not int or not 0 <= step < 2**48:
            step = _checks.step_number(step)
        self.grad_partials = None
        # As in Optimizer.step, few functions and no names: a small model notices.
        loss = self._core.forward_backward(
            self.params,
            self.grads,
            tokens,
            targets,
            label_smoothing,
            self.seed,
            step,
            bool(accumulate),
            loss_divisor,
            self._partials if partials else None,
            bool(self.recompute),
        )
        if partials:
            self.grad_partials = self._partials
        return loss

    def loss(self, tokens, targets):
        """Mean cross-entropy without dropout. Arguments as in :meth:`forward_backward`."""
        return self._core.loss(self.params, tokens, targets)

    def logits(self, tokens):
        """Logits ``[B, T, vocab_size]``, float32, without dropout."""
        shape = tuple(getattr(tokens, "shape", ()))
        rows = (1, *shape) if len(shape) == 1 else shape
        logits = np.empty((*rows, self.config.vocab_size), np.float32)
        self._core.logits(self.params, tokens, logits)
        return logits

    def generate(
        self, tokens, n, *, temperature=1.0, top_k=None, top_p=None, seed=0, stop_token=None
    ):
        """Samples ``n`` tokens behind each sequence, or fewer with ``stop_token``.

        The model sees the last ``block_size`` tokens. Up to that length a token costs one visit of
        the parameters, whatever the batch; beyond, every position moves with each token, which
        costs a pass over ``block_size`` tokens.

        Args:
            tokens: int ``[T]`` or ``[B, T]``, T at least 1.
            n: how many tokens.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among the k most likely tokens; None takes all.
            top_p: sample among the fewest of these whose probabilities add up to ``top_p``, one at
                least (nucleus sampling, Holtzman et al. 2020); in ``[0, 1]``; None takes all. Of
                equal logits the smaller id counts as more likely.
            seed: in ``[0, 2**64)``; row b of a batch uses ``seed + b``.
            stop_token: a row ends with the first of these that is drawn (those of the prompt do
                not count), and is filled with it while others go on. None: no row ends early.

        Returns:
            int64 array ``[T + n]`` or ``[B, T + n]``; with ``stop_token`` it is as long as the
            longest row. A row depends on its own tokens and seed, not on the batch around it.

        Raises:
            IndexError: a token is outside the vocabulary.
            ValueError, TypeError: another argument is wrong.
            RuntimeError: logits are not finite, so the parameters are not.
        """
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return Sampler(self, tokens, n, **options, stop_token=stop_token).whole()

    def stream(
        self,
        tokens,
        n,
        *,
        temperature=1.0,
        top_k=None,
        top_p=None,
        seed=0,
        stop_token=None,
        logits=None,
    ):
        """The same tokens one after the other, as soon as each is drawn.

        Args:
            tokens, n, temperature, top_k, top_p, seed, stop_token: as :meth:`generate`; checked at
                the call, not at the first token.
            logits: float32 ``[vocab_size]`` or ``[B, vocab_size]``, C-contiguous: overwritten with
                the logits that each token is drawn from, before temperature. None: not wanted.
                Those of a row that has ended mean nothing.

        Returns:
            An iterator over ``n`` ints, or over ``n`` int64 arrays ``[B]``; over fewer if all rows
            end with ``stop_token`` before. The parameters must not change before it ends.
        """
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return Sampler(self, tokens, n, **options, stop_token=stop_token, logits=logits).each()
