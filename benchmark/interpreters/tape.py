"""The tape: a forward pass that remembers how to hand relevance back, operation by operation.

`Tape` is a `TorchFunctionMode`. While it records, every operation on a tensor that depends on the input leaves a
closure that maps the relevance of its output to that of its inputs. The closures hold only what their rule needs and
are built from ordinary differentiable torch operations, so a heatmap is an honest function of every parameter: the
gradient of the heatmap is the true one, to any order. Functional calls, reused modules, inline arithmetic and in-place
variants (run in their pure form) are all seen; no hooks, no surgery on the model. An operation without a rule is an
error that names it, never a silently wrong map.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import Refused
from benchmark.interpreters.attention import PARTS, shifted
from benchmark.interpreters.head import Head
from benchmark.interpreters.leaving import LEAVING, Numbers
from benchmark.interpreters.operations import OPERATIONS, WEIGHTED, WRITES, folded, is_nonnegative, maker, run, shift_of
from benchmark.interpreters.origins import Ancestry, Strangers, refuse_half, refuse_unseen
from benchmark.interpreters.rules import Composite, Rule, Weighted
from benchmark.interpreters.steps import Step, Way
from benchmark.interpreters.tracing import Call, Memory, by_its_own, mapped, name_of, pure, refuse_out, tensors, values


class Tape(TorchFunctionMode):
    """Records from `start(tensors)` on; `relevance(output, seed)` then walks back to those tensors, once.

    `contrast`: `scores`, asked before, has the layer that made the logits centred over classes. `strangers` are
    operands that nobody was seen to make. Whether one hangs on the start, autograd can say: a tape with an `ancestry`,
    run with gradients, refuses it.
    """

    def __init__(
        self, composite: Composite, model: nn.Module, ancestry: Ancestry | None = None, contrast: bool = False
    ) -> None:
        super().__init__()
        self.composite = composite
        self.rules = composite  # those of operations without weights
        self.steps: list[Step] = []
        self.head = Head() if contrast else None
        self.count = 0
        self.nodes: Any = WeakIdKeyDictionary()  # tensor -> node number
        self.memory = Memory()
        self.numbers = Numbers()
        self.nonnegative: set[int] = set()
        self.makers: dict[int, str] = {}  # node -> the function that could make a gate of it
        self.weighted: dict[int, Weighted] = {}  # node of its output -> the operation
        self.readers: dict[int, int] = defaultdict(int)
        self.held: set[int] = set()  # nodes whose values a rule needs later
        self.own = {id(t) for t in (*model.parameters(), *model.buffers())}
        self.known: Any = WeakIdKeyDictionary()  # what the model made of its own tensors while it ran
        self.strangers: Strangers = []
        self.ancestry = ancestry
        self.recording = False
        self.begun: Tensor | None = None  # a tensor that it was started with
        self.raw: set[int] = set()  # nodes of the network's input, and what no weighted operation made of it
        self.scope: list[str] = []  # names of the modules now running, where somebody keeps them
        self.obeyed: set[str] = set()  # the composite's names whose rule relevance met
        self.ended: dict[str, float] | None = None  # operation -> the relevance that ended there, where somebody asks

    def start(self, inputs: Iterable[Tensor], is_input: bool) -> list[int]:
        """Begin to record, from these tensors; `is_input`: they are the network's input, so a `first` rule applies."""
        self.recording = True
        nodes = []
        for tensor in inputs:
            refuse_half("LRP", "its input", [tensor])
            nodes.append(self.node_of(tensor))
            self.begun = tensor
            if self.ancestry is not None:
                self.ancestry.root(tensor)
        self.held.update(nodes)  # the caller's own memory
        self.raw = set(nodes if is_input else ())
        return nodes

    def current(self, tensor: Tensor) -> Tensor:
        """The tensor as it would be had its in-place changes happened in place."""
        return self.memory.current(tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            if func.__name__ in LEAVING:
                self.numbers.note("LRP", func, [])
            return self._aside(func, args, kwargs, [])
        args, kwargs = mapped(self.current, args), mapped(self.current, kwargs)
        operands = values(func.__name__, args, kwargs)
        self.memory.refuse_stale(name_of(func), operands)
        read = [t for t in operands if t in self.nodes]
        if func.__name__ in LEAVING:
            self.numbers.note("LRP", func, read)
        if not read:
            return self._aside(func, args, kwargs, operands)
        refuse_out("LRP", func, kwargs)
        if func.__name__ in PARTS:
            with self:
                return PARTS[func.__name__](*args, **kwargs)
        self._check_origins(name_of(func), operands)
        inputs = [self.node_of(t) for t in read]
        makers = tuple(self.makers.get(node, "") for node in inputs)
        call = pure(func, args, kwargs, read)._replace(makers=makers, start=self.begun)
        if self._expendable(call):
            output, way = func(*args, **kwargs), None
            del self.nodes[call.target]
            call, written = call._replace(target=None), [output]
        else:
            output, way = run(call)
            written = [t for t in tensors(output) if not any(t is r for r in read)]
        if written:
            self._record(call, inputs, written, output, way)
        return output

    def _aside(self, func: Any, args: Any, kwargs: Any, operands: Sequence[Tensor]) -> Any:
        """An operation that nothing followed goes into."""
        output = func(*args, **kwargs)
        if all(self._is_known(t) for t in operands):
            for tensor in tensors(output):
                self.known[tensor] = True
        return output

    def _is_known(self, tensor: Tensor) -> bool:
        return id(tensor) in self.own or tensor in self.known

    def _check_origins(self, name: str, operands: Iterable[Tensor]) -> None:
        """Notice operands that nobody was seen to make; with an `ancestry`, refuse those that hang on the start."""
        for tensor in operands:
            if id(tensor) not in self.own and tensor not in self.nodes and tensor not in self.known:
                where = repr(name) + (f" in module {self.scope[-1]!r}" if self.scope and self.scope[-1] else "")
                self.strangers.append((where, tensor))
                if self.ancestry is not None and self.ancestry.depends(tensor):
                    refuse_unseen("LRP", where)

    def _expendable(self, call: Call) -> bool:
        """Whether the operation may run in place, as the model wrote it: nobody needs the old value."""
        if call.target is None or call.target in self.memory.views or call.name in WRITES:
            return False
        if call.target not in self.nodes or self.nodes[call.target] in self.held:
            return False
        return len(call.read) == 1

    def _record(self, call: Call, inputs: list[int], written: list[Tensor], output: Any, way: Way | None) -> None:
        refuse_half("LRP", repr(call.name), written)
        is_followed = call.target is not None and call.target in self.nodes
        outputs = [self.node_of(t) for t in written]
        for node in inputs:
            self.readers[node] += 1
        self.memory.note_views(call.read, written)
        if is_nonnegative(call, self.nonnegative.issuperset(inputs)):
            self.nonnegative.update(outputs)
        if call.name not in WEIGHTED and self.raw.issuperset(inputs):
            self.raw.update(outputs)
        self.makers.update(dict.fromkeys(outputs, maker(call)))
        way = way or self._way(call, output)
        if way is not None:
            self._hold(way.needs)
        module = self.scope[-1] if self.scope else ""
        self.steps.append(Step(call.name, module, inputs, outputs, way and way.propagate))
        if self.head is not None:
            self.head.note(call, len(self.steps) - 1, self.weighted.get(outputs[0]))
        if call.target is not None:
            self.memory.renew(call.target, output, is_followed)

    def node_of(self, tensor: Tensor) -> int:
        if tensor not in self.nodes:
            self.nodes[tensor] = self.count
            self.count += 1
        return self.nodes[tensor]

    def _hold(self, needed: Iterable[Tensor]) -> None:
        self.held.update(self.node_of(tensor) for tensor in needed)

    def _way(self, call: Call, output: Any) -> Way | None:
        """The way back, or None where there is no rule (an error only if relevance reaches it)."""
        if call.name in WEIGHTED:
            return self._weighted(call, output)
        if call.name == "batch_norm":
            return self._batch_norm(call, output)
        if call.name == "layer_norm" and self.rules.add == "positive":  # what follows is a stream of tokens
            self.rules = replace(self.rules, add="proportional")
        return OPERATIONS[call.name](call, output, self.rules) if call.name in OPERATIONS else None

    def _weighted(self, call: Call, output: Tensor) -> Way | None:
        if not call.is_of_input:
            return None  # the weight depends on the input
        op = WEIGHTED[call.name](*call.args, **call.kwargs)
        source, node = self.node_of(op.x), self.node_of(output)
        named, rule = self._rule(call.name, source in self.raw)
        op.output = output if rule.needs_output or self.composite.batch_norm == "fold" else None
        op.nonnegative = source in self.nonnegative
        self.weighted[node] = op

        def propagate(relevance: Tensor) -> tuple[Tensor]:
            if named is not None:
                self.obeyed.add(named)
            return (rule(op.folded if op.folded and self.readers[node] == 1 else op, relevance),)

        return Way(propagate, (op.x,) if op.output is None else (op.x, output))

    def _rule(self, operation: str, is_first: bool) -> tuple[str | None, Rule]:
        """The rule of the weighted operation that runs now, and the composite's name that gave it, if one did."""
        named = next((name for name in reversed(self.scope) if name in self.composite.names), None)
        if named is not None:
            return named, self.composite.names[named]
        if is_first and self.composite.first is not None:
            return None, self.composite.first
        return None, self.composite.linear if operation == "linear" else self.composite.conv

    def _batch_norm(self, call: Call, output: Tensor) -> Way | None:
        if not call.is_of_input or by_its_own(call):
            return None
        op = self.weighted.get(self.node_of(call.read[0]))
        if op is not None and call.read[0].dim() > op.weight.dim():  # over tokens (N, T, C): of no output, but a token
            op = None
        if self.composite.batch_norm == "pass" or (op is None and self.composite.add != "proportional"):
            return Way(lambda r: (r,))
        if op is None:
            constant, eps = shift_of(*call.args, **call.kwargs), self.composite.eps
            return Way(lambda r: (shifted(output, constant, r, eps),), (output,))
        op.folded = folded(op, output, *call.args, **call.kwargs)
        return Way(lambda r: (r,), (output,))

    def scores(self, logits: Tensor) -> Tensor:
        """What the relevance of the logits (N, classes) starts from: themselves, or the centred head's."""
        logits = self.current(logits)
        if self.head is None or logits not in self.nodes:  # which `relevance` refuses
            return logits
        return self.head.centre(logits, self.node_of(logits), self.steps, self.composite)

    def relevance(self, output: Tensor, seed: Tensor, at: Sequence[int]) -> list[Tensor | None]:
        """The relevance that reaches the nodes `at` when `output` starts with `seed`; None where none does."""
        output = self.current(output)
        self.memory.refuse_stale("logits", [output])
        if output not in self.nodes:
            raise Refused(
                "LRP finds no way from the logits to the image: what runs between is outside the trace (a "
                "scripted or traced module, a custom autograd.Function, C++), or they do not depend on it"
            )
        total: dict[int, Tensor] = {self.nodes[output]: seed}
        self.weighted.clear()
        above = set(at)
        while self.steps:  # closures refer to the tape: taken off it, their tensors go at once and not by a later gc
            step = self.steps.pop()
            above.difference_update(step.outputs)
            if not above:  # what made them hands on what nobody asks for
                self.steps.clear()
                break
            arriving = [total.get(node) for node in step.outputs]
            if all(r is None for r in arriving):
                continue
            if step.propagate is None:
                raise MissingRule(step.name, step.module)
            if len(arriving) > 1:
                parts = step.propagate(*arriving)
            else:
                parts = step.propagate(total.pop(step.outputs[0]) if step.outputs[0] not in at else arriving[0])
            if self.ended is not None:
                arrived, left = (sum(float(r.detach().sum()) for r in rs if r is not None) for rs in (arriving, parts))
                self.ended[step.name] = self.ended.get(step.name, 0.0) + arrived - left
            for node, part in zip(step.inputs, parts, strict=True):
                if part is not None:
                    total[node] = total[node] + part if node in total else part
        return [total.get(node) for node in at]


class MissingRule(Refused):
    """Relevance reached an operation that has no rule."""

    def __init__(self, name: str, module: str) -> None:
        super().__init__(f"LRP has no rule for the operation {name!r}" + (f" in module {module!r}" if module else ""))
