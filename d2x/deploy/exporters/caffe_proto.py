"""The part of Caffe's file format that is written here, as protobuf messages built when this module is imported.

Field numbers are those of Caffe's own ``caffe.proto``, so that its text and binary files can be read by any Caffe.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELD = descriptor_pb2.FieldDescriptorProto
# Message -> its fields as "type name number", a * for a repeated field and ** for a packed one.
MESSAGES = {
    "BlobShape": "int64** dim 1",
    "BlobProto": "BlobShape shape 7, float** data 5",
    "ConcatParameter": "int32 axis 2",
    "SliceParameter": "int32 axis 3, uint32* slice_point 2",
    "ConvolutionParameter": "uint32 num_output 1, bool bias_term 2, uint32 group 5, uint32 pad_h 9, uint32 pad_w 10,"
    " uint32 kernel_h 11, uint32 kernel_w 12, uint32 stride_h 13, uint32 stride_w 14, uint32* dilation 18",
    "EltwiseParameter": "EltwiseParameter.EltwiseOp operation 1, float* coeff 2",
    "InputParameter": "BlobShape* shape 1",
    "PoolingParameter": "PoolingParameter.PoolMethod pool 1, uint32 pad_h 9, uint32 pad_w 10, uint32 kernel_h 5,"
    " uint32 kernel_w 6, uint32 stride_h 7, uint32 stride_w 8",
    "PowerParameter": "float power 1, float scale 2, float shift 3",
    "ScaleParameter": "int32 axis 1, bool bias_term 4",
    "LayerParameter": "string name 1, string type 2, string* bottom 3, string* top 4, BlobProto* blobs 7,"
    " ConcatParameter concat_param 104, ConvolutionParameter convolution_param 106, EltwiseParameter eltwise_param 110,"
    " InputParameter input_param 143, PoolingParameter pooling_param 121, PowerParameter power_param 122,"
    " ScaleParameter scale_param 142, SliceParameter slice_param 126",
    "NetParameter": "string name 1, LayerParameter* layer 100",
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
        for text in fields.split(", "):
            kind, field_name, number = text.split()
            base = kind.rstrip("*")
            field = message.field.add(name=field_name, number=int(number))
            field.label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
            if base.islower():
                field.type = FIELD.Type.Value(f"TYPE_{base.upper()}")
            else:
                field.type = FIELD.TYPE_ENUM if "." in base else FIELD.TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{base}"
            if kind.endswith("**"):
                field.options.packed = True
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())

# A message class whose fields protobuf makes at run time, so that no type checker knows them.
NetParameter: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.NetParameter"))
