"""ONNX's messages where the package `onnx` may be missing: to read, check and trace a graph.

The package's own where it is installed. Elsewhere the same messages of onnx.proto, declared for
`protobuf`, which ONNX Runtime brings; a test holds them to onnx's. Writing a graph takes `onnx`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

__all__ = ["ModelProto", "TensorProto", "ValueInfoProto", "from_array", "parse_model", "to_array"]

FIELDS = {
    "ModelProto": "ir_version:int64=1 producer_name:string=2 producer_version:string=3 "
    "domain:string=4 model_version:int64=5 doc_string:string=6 graph:GraphProto=7 "
    "opset_import:OperatorSetIdProto*=8 metadata_props:StringStringEntryProto*=14",
    "GraphProto": "node:NodeProto*=1 name:string=2 initializer:TensorProto*=5 "
    "doc_string:string=10 input:ValueInfoProto*=11 output:ValueInfoProto*=12 "
    "value_info:ValueInfoProto*=13 metadata_props:StringStringEntryProto*=16",
    "NodeProto": "input:string*=1 output:string*=2 name:string=3 op_type:string=4 "
    "attribute:AttributeProto*=5 doc_string:string=6 domain:string=7 overload:string=8 "
    "metadata_props:StringStringEntryProto*=9",
    "AttributeProto": "name:string=1 f:float=2 i:int64=3 s:bytes=4 t:TensorProto=5 g:GraphProto=6 "
    "floats:float*=7 ints:int64*=8 strings:bytes*=9 tensors:TensorProto*=10 graphs:GraphProto*=11 "
    "doc_string:string=13 type:int32=20 ref_attr_name:string=21",
    "TensorProto": "dims:int64*=1 data_type:int32=2 float_data:float+=4 int32_data:int32+=5 "
    "string_data:bytes*=6 int64_data:int64+=7 name:string=8 raw_data:bytes=9 "
    "double_data:double+=10 uint64_data:uint64+=11 doc_string:string=12 "
    "external_data:StringStringEntryProto*=13 data_location:int32=14 "
    "metadata_props:StringStringEntryProto*=16",
    "ValueInfoProto": "name:string=1 type:TypeProto=2 doc_string:string=3 "
    "metadata_props:StringStringEntryProto*=4",
    "TypeProto": "tensor_type:TypeProto.Tensor=1 denotation:string=6",
    "TypeProto.Tensor": "elem_type:int32=1 shape:TensorShapeProto=2",
    "TensorShapeProto": "dim:TensorShapeProto.Dimension*=1",
    "TensorShapeProto.Dimension": "dim_value:int64=1 dim_param:string=2 denotation:string=3",
    "StringStringEntryProto": "key:string=1 value:string=2",
    "OperatorSetIdProto": "domain:string=1 version:int64=2",
}
"""Message -> `name:type=number`; `*` is repeated, `+` repeated and packed; an enum is an int32."""

NUMPY = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""numpy's names of TensorProto's data types."""

_FLOAT, _INT32, _INT64, _DOUBLE = "float_data", "int32_data", "int64_data", "double_data"
_LISTS = {1: _FLOAT, 7: _INT64, 11: _DOUBLE, 12: "uint64_data", 13: "uint64_data"}
"""Where a tensor without raw_data keeps its values; the other types in int32_data."""


def _declared(fields: dict[str, str]) -> dict[str, Any]:
    """Classes of messages, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="onnx", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    made: dict[str, Any] = {}
    for name, text in fields.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add() if outer else file.message_type.add()
        message.name, made[name] = inner, message
        for word in text.split():
            label, kind, number = word.replace("=", ":").split(":")
            repeated, scalar = kind[-1] in "*+", kind.rstrip("*+")
            field = message.field.add(name=label, number=int(number))
            field.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if scalar in fields:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".onnx.{scalar}"
            else:
                field.type = getattr(field_type, f"TYPE_{scalar.upper()}")
            if kind.endswith("+"):
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx.{name}"))
        for name in fields
    }


if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto
else:
    try:
        from onnx import ModelProto, TensorProto, ValueInfoProto
    except ModuleNotFoundError:
        _MESSAGES = _declared(FIELDS)
        ModelProto, TensorProto, ValueInfoProto = (
            _MESSAGES[name] for name in ("ModelProto", "TensorProto", "ValueInfoProto")
        )


def parse_model(data: bytes) -> ModelProto:
    """A model from its bytes. Raises protobuf's DecodeError where they are none."""
    model = ModelProto()
    model.ParseFromString(data)
    return model


def to_array(tensor: TensorProto) -> npt.NDArray[Any]:
    """The values of a tensor that carries them itself.

    Raises:
        ValueError: it does not, or they are of a type that none of our graphs has.
    """
    known = {number: np.dtype(name) for name, number in NUMPY.items()}
    if tensor.data_type not in known or tensor.data_location:
        raise ValueError(f"{tensor.name} has data type {tensor.data_type} or lies elsewhere")
    dtype, shape = known[tensor.data_type], tuple(tensor.dims)
    if tensor.HasField("raw_data"):
        raw = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<"))
        return raw.astype(dtype, copy=False).reshape(shape)
    values = getattr(tensor, _LISTS.get(tensor.data_type, _INT32))
    if dtype == np.float16:  # its bits
        return np.array(values, np.uint16).view(np.float16).reshape(shape)
    return np.array(values).astype(dtype).reshape(shape)


def from_array(value: npt.NDArray[Any], name: str) -> TensorProto:
    """A tensor as `onnx.numpy_helper.from_array` makes it, byte for byte."""
    data = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    return TensorProto(
        dims=value.shape, data_type=NUMPY[value.dtype.name], raw_data=data, name=name
    )
