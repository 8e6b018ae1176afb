"""The part of Caffe's file format that is written here, as protobuf messages built when this module is imported.

Field numbers are those of Caffe's own ``caffe.proto``, so that its text and binary files can be read by any Caffe.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELD = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "float": FIELD.TYPE_FLOAT,
    "int32": FIELD.TYPE_INT32,
    "int64": FIELD.TYPE_INT64,
    "uint32": FIELD.TYPE_UINT32,
    "bool": FIELD.TYPE_BOOL,
    "string": FIELD.TYPE_STRING,
}

# Message -> (name, number, type), a * for a repeated field and ** for a packed one.
MESSAGES = {
    "BlobShape": [("dim", 1, "int64**")],
    "BlobProto": [("shape", 7, "BlobShape"), ("data", 5, "float**")],
    "ConcatParameter": [("axis", 2, "int32")],
    "SliceParameter": [("axis", 3, "int32"), ("slice_point", 2, "uint32*")],
    "ConvolutionParameter": [
        ("num_output", 1, "uint32"),
        ("bias_term", 2, "bool"),
        ("group", 5, "uint32"),
        ("pad_h", 9, "uint32"),
        ("pad_w", 10, "uint32"),
        ("kernel_h", 11, "uint32"),
        ("kernel_w", 12, "uint32"),
        ("stride_h", 13, "uint32"),
        ("stride_w", 14, "uint32"),
        ("dilation", 18, "uint32*"),
    ],
    "EltwiseParameter": [("operation", 1, "EltwiseParameter.EltwiseOp"), ("coeff", 2, "float*")],
    "InputParameter": [("shape", 1, "BlobShape*")],
    "PoolingParameter": [
        ("pool", 1, "PoolingParameter.PoolMethod"),
        ("pad_h", 9, "uint32"),
        ("pad_w", 10, "uint32"),
        ("kernel_h", 5, "uint32"),
        ("kernel_w", 6, "uint32"),
        ("stride_h", 7, "uint32"),
        ("stride_w", 8, "uint32"),
        ("global_pooling", 12, "bool"),
    ],
    "PowerParameter": [("power", 1, "float"), ("scale", 2, "float"), ("shift", 3, "float")],
    "ScaleParameter": [("axis", 1, "int32"), ("bias_term", 4, "bool")],
    "LayerParameter": [
        ("name", 1, "string"),
        ("type", 2, "string"),
        ("bottom", 3, "string*"),
        ("top", 4, "string*"),
        ("blobs", 7, "BlobProto*"),
        ("concat_param", 104, "ConcatParameter"),
        ("convolution_param", 106, "ConvolutionParameter"),
        ("eltwise_param", 110, "EltwiseParameter"),
        ("input_param", 143, "InputParameter"),
        ("pooling_param", 121, "PoolingParameter"),
        ("power_param", 122, "PowerParameter"),
        ("scale_param", 142, "ScaleParameter"),
        ("slice_param", 126, "SliceParameter"),
    ],
    "NetParameter": [("name", 1, "string"), ("layer", 100, "LayerParameter*")],
}
ENUMS = {
    "EltwiseParameter": ("EltwiseOp", ("PROD", "SUM", "MAX")),
    "PoolingParameter": ("PoolMethod", ("MAX", "AVE")),
}
PACKAGE = "caffe"


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="d2x/caffe.proto", package=PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in ENUMS:
            enum_name, values = ENUMS[name]
            enum = message.enum_type.add(name=enum_name)
            for number, value in enumerate(values):
                enum.value.add(name=value, number=number)
        for field_name, number, kind in fields:
            _add_field(message, field_name, number, kind)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    base = kind.rstrip("*")
    field = message.field.add(name=name, number=number)
    field.label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
    if base in TYPES:
        field.type = TYPES[base]
    else:
        field.type = FIELD.TYPE_ENUM if "." in base else FIELD.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{base}"
    if kind.endswith("**"):
        field.options.packed = True


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message(name: str):
    """A message class by its name, such as "NetParameter"."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


NetParameter = message("NetParameter")
