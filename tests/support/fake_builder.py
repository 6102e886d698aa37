"""TensorRT's builder, parser and inspector, as far as we use them: the engine it builds is the ONNX file itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import onnx
from fake_gpu import FakeCuda, FakeEngine, FakeTensorRt

OWN_TIMINGS = b"timings of this GPU"


class FakeBuilderTensorRt(FakeTensorRt):
    """Stands for the module ``tensorrt`` where engines are built."""

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    BuilderFlag = SimpleNamespace(TF32=7)
    MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    LayerInformationFormat = SimpleNamespace(JSON=1)

    class IProgressMonitor:
        pass

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(cuda)
        self.refused_operator = ""
        self.float32_layers: set[str] = set()
        """Layers that the inspector shows in float32."""
        self.config: FakeConfig | None = None

    def Builder(self, logger: Any) -> FakeBuilder:
        return FakeBuilder(self)

    def OnnxParser(self, network: SimpleNamespace, logger: Any) -> FakeParser:
        return FakeParser(self, network)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: InspectedEngine(self, data))


class FakeBuilder:
    def __init__(self, trt: FakeBuilderTensorRt) -> None:
        self.trt = trt

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1 << self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(model=b"")

    def create_builder_config(self) -> FakeConfig:
        self.trt.config = FakeConfig()
        return self.trt.config

    def create_optimization_profile(self) -> SimpleNamespace:
        def set_shape(name: str, smallest: Any, best: Any, largest: Any) -> None:
            self.trt.sizes = (smallest[0], best[0], largest[0])
            if name == "canvas":
                self.trt.canvases = (smallest[1:3], best[1:3], largest[1:3])

        return SimpleNamespace(set_shape=set_shape)

    def build_serialized_network(self, network: SimpleNamespace, config: FakeConfig) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Choosing kernels", "Building", 5)
        going_on = all([monitor.step_complete("Choosing kernels", step) for step in range(5)])
        monitor.phase_finish("Choosing kernels")
        monitor.phase_finish("Building")
        return network.model if going_on else None


class FakeConfig:
    def __init__(self) -> None:
        self.profiling_verbosity = self.builder_optimization_level = None
        self.progress_monitor: Any = None
        self.cleared: list[int] = []
        self.pools: dict[int, int] = {}
        self.cache: Any = None

    def clear_flag(self, flag: int) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, data: bytes) -> SimpleNamespace:
        return SimpleNamespace(data=data, serialize=lambda: OWN_TIMINGS)

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        fits = cache.data in (b"", OWN_TIMINGS)
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self) -> SimpleNamespace:
        assert self.cache is not None
        return self.cache  # type: ignore[no-any-return]


class FakeParser:
    def __init__(self, trt: FakeBuilderTensorRt, network: SimpleNamespace) -> None:
        self.trt, self.network = trt, network
        self.refused: list[onnx.NodeProto] = []
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        self.network.model = model
        nodes = onnx.load_from_string(model).graph.node
        self.refused = [n for n in nodes if n.op_type == self.trt.refused_operator]
        self.num_errors = len(self.refused)
        return not self.refused

    def get_error(self, index: int) -> Any:
        node = self.refused[index]
        return SimpleNamespace(
            node_name=lambda: node.name, node_operator=lambda: node.op_type, desc=lambda: "no importer registered"
        )


class InspectedEngine(FakeEngine):
    trt: FakeBuilderTensorRt

    def __init__(self, trt: FakeBuilderTensorRt, data: bytes) -> None:
        super().__init__(trt, data)
        self.nodes = onnx.load_from_string(data).graph.node

    def create_engine_inspector(self) -> Any:
        def information(form: int) -> str:
            assert inspector.execution_context.shapes, "formats of dynamic shapes need a context's"
            rows = []
            for node in self.nodes:
                kind = "Float" if node.name in self.trt.float32_layers else "Half"
                form_name = f"{kind}, Row major linear"
                rows.append(
                    {
                        "Name": f"{node.name} + something fused",
                        "LayerType": "CaskConvolution",
                        "Inputs": [{"Name": "x", "Format/Datatype": form_name}],
                        "Metadata": f"[ONNX Layer: {node.name}]",
                    }
                )
            return json.dumps({"Layers": rows})

        inspector = SimpleNamespace(execution_context=None, get_engine_information=information)
        return inspector
