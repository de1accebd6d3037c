"""Generates the client's code from ../../proto into ./generated (which git ignores).

    python generate.py [DIRECTORY]
"""

import pathlib
import sys

import grpc_tools.protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"


def generate(out: pathlib.Path) -> None:
    """Writes the modules tenantd.v1.* below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    # The protobuf types that Google ships (timestamps and the like) come with grpcio-tools.
    well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("tenantd/v1/*.proto"))
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if grpc_tools.protoc.main(arguments) != 0:
        sys.exit("the code could not be generated; see above")


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "generated")
