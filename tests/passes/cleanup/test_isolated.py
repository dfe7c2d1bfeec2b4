"""A process of its own for what may crash: it does, and we go on."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import onnx.parser
import pytest
from onnxedge_passes.cleanup.constants.isolated import Isolated

from onnxedge.api import Array, CannotRun

NEG = "g (float[N] x) => (float[N] y) { y = Neg(x) }"
DIV = "g (int64[1] x, int64[1] d) => (int64[1] y) { y = Div(x, d) }"
FILL = "g (int64[1] x) => (float[N] y) { y = ConstantOfShape(x) }"
#: ONNX Runtime 1.31 dies of a Unique along an axis without elements.
UNIQUE = "g (int64[4, 0, 1] x) => (int64[A, B, C] y) { y = Unique<axis=0>(x) }"


def model(text: str) -> bytes:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def isolated() -> Isolated:
    return Isolated(1 << 30, 20.0)


ROW = np.arange(3, dtype=np.float32)


@pytest.mark.parametrize("array", [ROW, ROW[:0], ROW.reshape(3, 1)[:, 0][::2], np.array([np.nan, -0.0, np.inf], "f")])
def test_arrays_come_back_bit_by_bit(isolated: Isolated, array: Array) -> None:
    (result,) = isolated.run(model(NEG), {"x": array})
    assert result.dtype == np.float32
    assert result.shape == array.shape
    assert result.tobytes() == (-array).tobytes()


def test_what_the_runtime_refuses_is_said(isolated: Isolated) -> None:
    with pytest.raises(CannotRun, match="Integer division by zero"):
        isolated.run(model(DIV), {"x": np.array([1]), "d": np.array([0])})
    with pytest.raises(CannotRun, match="memory"):
        isolated.run(model(FILL), {"x": np.array([1 << 33])})
    assert isolated.run(model(NEG), {"x": ROW})[0].tolist() == [0, -1, -2]


@pytest.mark.skipif(sys.platform != "linux", reason="how a process dies differs")
def test_a_crash_there_is_an_error_here(isolated: Isolated) -> None:
    with pytest.raises(CannotRun, match=r"the runtime crashes on it \(SIGFPE\)"):
        isolated.run(model(DIV), {"x": np.array([-(2**63)]), "d": np.array([-1])})
    with pytest.raises(CannotRun, match=r"the runtime crashes on it \(SIGABRT\)"):
        isolated.run(model(UNIQUE), {"x": np.zeros((4, 0, 1), np.int64)})
    assert isolated.run(model(NEG), {"x": ROW})[0].tolist() == [0, -1, -2]


def test_what_does_not_end_is_ended() -> None:
    endless = (
        "g (float x) => (float y) <int64 n = {1000000000000}> { y = Loop(n, , x) <body = b (int64 i, bool c, float v)"
        " => (bool d, float w) { d = Identity(c) w = Neg(v) }> }"
    )
    with pytest.raises(CannotRun, match=r"it takes over 0\.5 s"):
        Isolated(1 << 30, 0.5).run(model(endless), {"x": np.array(1, np.float32)})


def test_from_threads(isolated: Isolated) -> None:
    results: list[list[float]] = []

    def work(number: int) -> None:
        for _ in range(10):
            results.append(isolated.run(model(NEG), {"x": ROW + number})[0].tolist())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([*map(float, -(ROW + number))] for number in range(4) for _ in range(10))


def test_from_a_script_without_a_guard() -> None:
    text = (
        "import numpy as np\n"
        "from onnxedge_passes.cleanup.constants.isolated import Isolated\n"
        f"(y,) = Isolated(1 << 30, 20.0).run({model(NEG)!r}, {{'x': np.ones(2, 'f')}})\n"
        "print(y.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[-1.0, -1.0]\n"
    assert not done.stderr


def test_the_process_ends_with_its_owner() -> None:
    owner = Isolated(1 << 30, 20.0)
    owner.run(model(NEG), {"x": ROW})
    process = owner._process
    assert process is not None
    del owner
    assert process.wait(10) is not None
