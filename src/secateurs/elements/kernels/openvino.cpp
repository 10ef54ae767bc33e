// The sparse convolution as an OpenVINO operator, `SecateursSparseConv2d` of the operator set `extension`. Compiled
// together with the kernels into one library, against the headers of the OpenVINO that will load it.
//
// Inputs:     x [n, h, w, c]; weights, masks (bytes), starts as in sparse_conv.h; bias [filters]; residual [n, h, w, filters]
//             or nothing.
// Attributes: geometry (kernel h, w, stride h, w, padding top, left, bottom, right, dilation h, w, groups), filters,
//             activation (none, relu, relu6 or silu).
// Output:     [n, h, w, filters]. Channels are innermost on purpose: the runtime hands over planar tensors only.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <tbb/task_arena.h>

#include "sparse_conv.h"

namespace secateurs {
namespace {

enum Input { kX, kWeights, kMasks, kStarts, kBias, kResidual };
enum Geometry { kKernel = 0, kStride = 2, kPadBegin = 4, kPadEnd = 6, kDilation = 8, kGroups = 10, kGeometrySize = 11 };

class SparseConv2d : public ov::op::Op {
 public:
  OPENVINO_OP("SecateursSparseConv2d", "extension");

  SparseConv2d() = default;

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == kBias + 1 || get_input_size() == kResidual + 1, "takes 5 or 6 inputs");
    NODE_VALIDATION_CHECK(this, geometry_.size() == kGeometrySize, "geometry has 11 numbers, not ", geometry_.size());
    NODE_VALIDATION_CHECK(this, activation_code() >= 0, "unknown activation ", activation_);
    for (int i : {int{kX}, int{kWeights}, int{kBias}}) {
      NODE_VALIDATION_CHECK(this, get_input_element_type(i) == ov::element::f32, "input ", i, " must be f32");
    }
    const ov::PartialShape& x = get_input_partial_shape(kX);
    NODE_VALIDATION_CHECK(this, x.rank().compatible(4), "x must be [n, h, w, c]");
    ov::PartialShape out = {ov::Dimension(), ov::Dimension(), ov::Dimension(), filters_};
    if (x.rank().is_static()) {
      out[0] = x[0];
      for (int axis = 0; axis < 2; ++axis) {
        if (x[axis + 1].is_static()) out[axis + 1] = out_size(x[axis + 1].get_length(), axis);
      }
    }
    set_output_type(0, ov::element::f32, out);
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    auto copy = std::make_shared<SparseConv2d>();
    copy->set_arguments(inputs);
    copy->geometry_ = geometry_;
    copy->filters_ = filters_;
    copy->activation_ = activation_;
    copy->constructor_validate_and_infer_types();
    return copy;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("geometry", geometry_);
    visitor.on_attribute("filters", filters_);
    visitor.on_attribute("activation", activation_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape& in = inputs[kX].get_shape();
    const int64_t height = out_size(static_cast<int64_t>(in[1]), 0), width = out_size(static_cast<int64_t>(in[2]), 1);
    outputs[0].set_shape({in[0], static_cast<size_t>(height), static_cast<size_t>(width), static_cast<size_t>(filters_)});
    const auto number = [&](int index) { return static_cast<int32_t>(geometry_[static_cast<size_t>(index)]); };
    secateurs_conv c = {};
    c.batch = static_cast<int32_t>(in[0]);
    c.in_height = static_cast<int32_t>(in[1]);
    c.in_width = static_cast<int32_t>(in[2]);
    c.in_channels = static_cast<int32_t>(in[3]);
    c.out_channels = static_cast<int32_t>(filters_);
    c.out_height = static_cast<int32_t>(height);
    c.out_width = static_cast<int32_t>(width);
    c.kernel_height = number(kKernel);
    c.kernel_width = number(kKernel + 1);
    c.stride_height = number(kStride);
    c.stride_width = number(kStride + 1);
    c.pad_top = number(kPadBegin);
    c.pad_left = number(kPadBegin + 1);
    c.dilation_height = number(kDilation);
    c.dilation_width = number(kDilation + 1);
    c.groups = number(kGroups);
    c.block = static_cast<int32_t>(inputs[kWeights].get_shape()[1]);
    c.activation = activation_code();
    c.threads = tbb::this_task_arena::max_concurrency();  // what INFERENCE_NUM_THREADS allows
    c.in_stride_channel = 1;
    c.in_stride_column = c.in_channels;
    c.in_stride_row = c.in_stride_column * c.in_width;
    c.in_stride_batch = c.in_stride_row * c.in_height;
    c.out_stride_column = c.residual_stride_column = filters_;
    c.out_stride_row = c.residual_stride_row = filters_ * width;
    c.out_stride_batch = c.residual_stride_batch = filters_ * width * height;
    const int status = secateurs_sparse_conv_f32(
        &c, inputs[kX].data<const float>(), inputs[kWeights].data<const float>(),
        reinterpret_cast<const uint16_t*>(inputs[kMasks].data<const uint8_t>()), inputs[kStarts].data<const int32_t>(),
        inputs[kBias].data<const float>(), inputs.size() > kResidual ? inputs[kResidual].data<const float>() : nullptr,
        outputs[0].data<float>());
    OPENVINO_ASSERT(status == SECATEURS_OK, get_friendly_name(), ": the sparse convolution refused with status ", status);
    return true;
  }

 private:
  int64_t out_size(int64_t size, int axis) const {
    const auto at = [&](int index) { return geometry_[static_cast<size_t>(index + axis)]; };
    return (size + at(kPadBegin) + at(kPadEnd) - at(kDilation) * (at(kKernel) - 1) - 1) / at(kStride) + 1;
  }

  int activation_code() const {
    const char* const names[] = {"none", "relu", "relu6", "silu"};  // in the order of secateurs_activation
    for (int i = 0; i < 4; ++i) {
      if (activation_ == names[i]) return i;
    }
    return -1;
  }

  std::vector<int64_t> geometry_;
  int64_t filters_ = 0;
  std::string activation_ = "none";
};

}  // namespace
}  // namespace secateurs

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<secateurs::SparseConv2d>>()}));
