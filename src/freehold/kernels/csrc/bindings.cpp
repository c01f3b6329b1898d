// The only place that knows Python. Checks shapes, drops the GIL around work, turns C++ exceptions into ValueError.
#include <iterator>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

#include "cpu.h"
#include "executor.h"
#include "matching.h"

namespace nb = nanobind;
using namespace freehold;

namespace {

template <class T, int D>
using Array = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;

int extent(size_t n) {
  if (n == 0 || n > (size_t{1} << 30)) throw std::invalid_argument("array extent must be between 1 and 2^30");
  return static_cast<int>(n);
}

std::shared_ptr<Packed> bind_pack_quantized(Array<uint8_t, 2> codes, Array<float, 2> scales, nb::object offsets, int bits, int group) {
  const int rows = extent(codes.shape(0)), columns = extent(codes.shape(1));
  if (group < 1) throw std::invalid_argument("group must be positive");
  const size_t groups = (columns + group - 1) / group;
  auto fits = [&](const Array<float, 2>& a) { return a.shape(0) == codes.shape(0) && a.shape(1) == groups; };
  if (!fits(scales)) throw std::invalid_argument("scales must be [rows, ceil(columns / group)]");
  const float* offset_data = nullptr;
  Array<float, 2> held;
  if (!offsets.is_none()) {
    held = nb::cast<Array<float, 2>>(offsets);
    if (!fits(held)) throw std::invalid_argument("offsets must have the shape of scales");
    offset_data = held.data();
  }
  nb::gil_scoped_release free;
  return pack_quantized(codes.data(), scales.data(), offset_data, rows, columns, bits, group);
}

// Values as an array; when Python is done with it, they go back to `spare`.
nb::object lent(std::vector<float>&& values, size_t rows, size_t columns, std::shared_ptr<Spare> spare) {
  struct Loan { std::vector<float> values; std::shared_ptr<Spare> spare; };
  auto* loan = new Loan{std::move(values), std::move(spare)};
  nb::capsule owner(loan, [](void* p) noexcept {
    auto* back = static_cast<Loan*>(p);
    back->spare->give(std::move(back->values));
    delete back;
  });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(loan->values.data(), {rows, columns}, owner));
}

nb::object owned(std::vector<float>&& values, size_t rows, size_t columns) {
  auto* kept = new std::vector<float>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(kept->data(), {rows, columns}, owner));
}

Kind kind_by_name(const std::string& name) {
  const char* names[] = {"embed", "rmsnorm", "linear", "headnorm", "rope_table", "rope", "attention", "silu_mul", "gelu_mul", "gather", "residual"};
  for (int i = 0; i < static_cast<int>(std::size(names)); ++i)
    if (name == names[i]) return static_cast<Kind>(i);
  throw std::invalid_argument("unknown operation " + name);
}

KVType kv_by_name(const std::string& name) {
  if (name == "int8") return KVType::int8;
  if (name == "f16") return KVType::f16;
  if (name == "f32") return KVType::f32;
  throw std::invalid_argument("KV type must be int8, f16 or f32, got " + name);
}

// (kind, out, in, parts, vector, attrs)
Instruction instruction(nb::handle item, const std::vector<BufferShape>& shapes) {
  const nb::tuple t = nb::cast<nb::tuple>(item);
  Instruction op;
  op.kind = kind_by_name(nb::cast<std::string>(t[0]));
  op.out = nb::cast<int>(t[1]);
  op.in = nb::cast<int>(t[2]);
  op.parts = nb::cast<std::vector<std::shared_ptr<Packed>>>(t[3]);
  if (!t[4].is_none()) {
    const auto v = nb::cast<Array<float, 1>>(t[4]);
    op.vector.assign(v.data(), v.data() + v.shape(0));
  }
  const nb::dict attrs = nb::cast<nb::dict>(t[5]);
  auto number = [&](const char* name, double otherwise) { return attrs.contains(name) ? nb::cast<double>(attrs[name]) : otherwise; };
  op.column = static_cast<int>(number("column", 0));
  op.heads = static_cast<int>(number("heads", 0));
  op.kv_heads = static_cast<int>(number("kv_heads", 0));
  op.head_dim = static_cast<int>(number("head_dim", 0));
  op.layer = static_cast<int>(number("layer", 0));
  op.unit = static_cast<int>(number("unit", 0));
  op.window = static_cast<int>(number("window", 0));
  op.accumulate = number("accumulate", 0) != 0;
  op.scale = static_cast<float>(number("scale", 1));
  op.eps = static_cast<float>(number("eps", 0));
  op.offset = static_cast<float>(number("offset", 0));
  op.factor = static_cast<float>(number("factor", 1));
  const int count = static_cast<int>(shapes.size());
  auto need = [&](bool good, const char* what) { if (!good) throw std::invalid_argument(std::string(what) + " of " + nb::cast<std::string>(t[0])); };
  need(op.out >= 0 && op.out < count && op.in < count, "buffer");
  const int out = shapes[op.out].columns, in = op.in >= 0 ? shapes[op.in].columns : 0, length = static_cast<int>(op.vector.size());
  int rows = 0;
  for (const auto& part : op.parts) rows += part->matrix.rows;
  switch (op.kind) {
    case Kind::embed: need(!op.parts.empty() && op.parts[0]->matrix.columns == out, "table"); break;
    case Kind::rmsnorm: need(op.in >= 0 && in == out && length == out, "gain"); break;
    case Kind::linear:
      need(op.in >= 0 && !op.parts.empty() && op.column >= 0 && op.column + rows <= out, "matrix rows");
      for (const auto& part : op.parts) need(part->matrix.columns == in, "matrix columns");
      need(op.vector.empty() || length == rows, "bias");
      need(shapes[op.in].outputs == shapes[op.out].outputs, "buffer rows");
      break;
    case Kind::headnorm:
      op.head_dim = length;
      need(length > 0 && op.column >= 0 && op.column + op.heads * length <= out, "heads");
      break;
    case Kind::rope_table: need(out == 2 * length, "inv_freq"); break;
    case Kind::rope: need(op.in >= 0 && in == op.head_dim && op.head_dim % 2 == 0 && op.column + op.heads * op.head_dim <= out, "heads"); break;
    case Kind::attention:
      need(op.in >= 0 && op.kv_heads > 0 && op.heads % op.kv_heads == 0 && in == (op.heads + 2 * op.kv_heads) * op.head_dim &&
           out == op.heads * op.head_dim, "heads");
      need(op.window >= 0, "window");
      break;
    case Kind::silu_mul:
    case Kind::gelu_mul: need(op.in >= 0 && in == 2 * out, "columns"); break;
    case Kind::gather: need(op.in >= 0 && in == out && shapes[op.out].outputs && !shapes[op.in].outputs, "buffers"); break;
    case Kind::residual:
      need(op.in >= 0 && in == out && shapes[op.in].outputs == shapes[op.out].outputs, "columns");
      need(op.unit == 32 || op.unit == 64 || op.unit == 128, "unit");
      break;
  }
  return op;
}

Crowd::Clock::time_point at(double seconds) {
  return Crowd::Clock::time_point(std::chrono::duration_cast<Crowd::Clock::duration>(std::chrono::duration<double>(seconds)));
}

std::unique_ptr<Executor> make_executor(const std::string& tier, const std::vector<std::pair<int, bool>>& buffers, nb::list program,
                                        int logits, const std::string& kv_type, int layers, int pages, int kv_heads, int head_dim,
                                        int context, int vocabulary, int threads) {
  std::vector<BufferShape> shapes;
  for (const auto& [columns, outputs] : buffers) shapes.push_back({columns, outputs});
  if (logits < 0 || logits >= static_cast<int>(shapes.size())) throw std::invalid_argument("no such logits buffer");
  if (layers < 1 || pages < 1 || kv_heads < 1 || threads < 1) throw std::invalid_argument("layers, pages, heads and threads must be positive");
  std::vector<Instruction> ops;
  for (nb::handle item : program) ops.push_back(instruction(item, shapes));
  for (const auto& op : ops) {
    if (op.kind == Kind::attention && (op.layer < 0 || op.layer >= layers || op.kv_heads != kv_heads || op.head_dim != head_dim))
      throw std::invalid_argument("attention does not match the KV cache");
    int rows = 0;
    for (const auto& part : op.parts) rows += part->matrix.rows;
    if (op.kind == Kind::embed && rows != vocabulary) throw std::invalid_argument("embedding rows are not the vocabulary");
  }
  return std::make_unique<Executor>(tier_by_name(tier), std::move(shapes), std::move(ops), logits, kv_by_name(kv_type), layers, pages,
                                    kv_heads, head_dim, context, vocabulary, threads);
}

nb::object bind_run(Executor& executor, Array<int32_t, 1> tokens, Array<int32_t, 1> positions, Array<int32_t, 1> sequences,
                    Array<int32_t, 2> tables, Array<int32_t, 1> outputs) {
  if (positions.shape(0) != tokens.shape(0) || sequences.shape(0) != tokens.shape(0))
    throw std::invalid_argument("tokens, positions and sequences must have the same length");
  const StepView step = {tokens.data(), positions.data(), sequences.data(), tables.data(), outputs.data(),
                         static_cast<int>(tokens.shape(0)), static_cast<int>(tables.shape(0)), static_cast<int>(tables.shape(1)),
                         static_cast<int>(outputs.shape(0))};
  const size_t rows = outputs.shape(0), columns = executor.logits_columns();
  std::vector<float> result;
  {
    nb::gil_scoped_release free;
    result = executor.run(step);
  }
  return lent(std::move(result), rows, columns, executor.spare());
}

// One linear on its own, for tests: x float32 [rows, columns] -> [rows, matrix rows].
nb::object bind_linear(const std::string& tier_name, std::shared_ptr<Packed> packed, Array<float, 2> x) {
  const Tier& tier = tier_by_name(tier_name);
  const Matrix& m = packed->matrix;
  const int rows = extent(x.shape(0));
  if (static_cast<int>(x.shape(1)) != m.columns) throw std::invalid_argument("x has the wrong number of columns");
  std::vector<float> out(static_cast<size_t>(rows) * m.rows);
  const Output output = {out.data(), m.rows, nullptr, false};
  if (m.format == Format::f32 || m.format == Format::bf16) {
    tier.linear_float(m, x.data(), m.columns, rows, 0, m.panels, output);
  } else {
    const int units = m.padded / m.unit;
    std::vector<int8_t> codes(static_cast<size_t>(rows) * m.padded);
    std::vector<float> scales(static_cast<size_t>(rows) * units), sums(scales.size());
    std::vector<int32_t> starts(scales.size());
    for (int r = 0; r < rows; ++r) {
      const size_t unit = static_cast<size_t>(r) * units;
      tier.quantize(x.data() + static_cast<size_t>(r) * m.columns, m.columns, m.unit, m.zero, codes.data() + static_cast<size_t>(r) * m.padded,
                    scales.data() + unit, sums.data() + unit, starts.data() + unit);
    }
    const Memory scratch(scratch_bytes(m.padded));
    tier.linear_quantized(m, {codes.data(), scales.data(), sums.data(), starts.data(), m.padded, units}, rows, 0, m.panels, output, scratch.data());
  }
  return owned(std::move(out), rows, m.rows);
}

const char* const kFormats[] = {"int4", "int8", "bf16", "f32"};  // in the order of Format

Format format_by_name(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kFormats)); ++i)
    if (name == kFormats[i]) return static_cast<Format>(i);
  throw std::invalid_argument("unknown format " + name);
}

// The bytes of a section, valid as long as `self`.
nb::object section(nb::handle self, const void* data, size_t bytes) {
  if (!data) return nb::none();
  return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(data, {bytes}, self));
}

nb::object unpack(const Packed& packed) {
  const Matrix& m = packed.matrix;
  std::vector<float> out(static_cast<size_t>(m.rows) * m.columns);
  for (int r = 0; r < m.rows; ++r) unpack_row(m, r, out.data() + static_cast<size_t>(r) * m.columns);
  return owned(std::move(out), m.rows, m.columns);
}

std::vector<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>> bind_maximal_matches(Array<uint8_t, 1> text, Array<uint32_t, 1> suffixes,
                                                                                     Array<uint8_t, 1> query, size_t minimum) {
  if (text.shape(0) != suffixes.shape(0)) throw std::invalid_argument("text and suffix array must have the same length");
  nb::gil_scoped_release free;
  std::vector<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>> found;
  for (const Match& m : maximal_matches({text.data(), suffixes.data(), text.shape(0)}, query.data(), query.shape(0), minimum))
    found.emplace_back(m.start, m.length, m.low, m.high);
  return found;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Freehold's CPU kernels and program executor.";
  nb::class_<Packed>(m, "Packed")
      .def_prop_ro("shape", [](const Packed& p) { return std::make_pair(p.matrix.rows, p.matrix.columns); })
      .def_prop_ro("nbytes", &Packed::bytes)
      .def_prop_ro("format", [](const Packed& p) { return kFormats[static_cast<int>(p.matrix.format)]; })
      .def_prop_ro("group", [](const Packed& p) { return p.matrix.units_per_group == 1 ? p.matrix.unit : p.matrix.columns; })
      .def_prop_ro("narrow_scales", [](const Packed& p) { return p.matrix.narrow_scales; })
      .def_prop_ro("codes", [](nb::handle self) {
        const Packed& p = nb::cast<const Packed&>(self);
        return section(self, p.matrix.codes, p.code_bytes());
      })
      .def_prop_ro("scales", [](nb::handle self) {
        const Packed& p = nb::cast<const Packed&>(self);
        return section(self, p.matrix.scales, p.scale_bytes());
      })
      .def_prop_ro("offsets", [](nb::handle self) {
        const Packed& p = nb::cast<const Packed&>(self);
        return section(self, p.matrix.offsets, p.scale_bytes());
      })
      .def("float32", &unpack);
  m.def("pack_quantized", &bind_pack_quantized, nb::arg("codes"), nb::arg("scales"), nb::arg("offsets").none(), nb::arg("bits"), nb::arg("group"));
  m.def("pack_float", [](Array<float, 2> data) {
    const int rows = extent(data.shape(0)), columns = extent(data.shape(1));
    nb::gil_scoped_release free;
    return pack_float(data.data(), rows, columns);
  });
  m.def("pack_bf16", [](Array<uint16_t, 2> data) {
    const int rows = extent(data.shape(0)), columns = extent(data.shape(1));
    nb::gil_scoped_release free;
    return pack_bf16(data.data(), rows, columns);
  });
  nb::class_<Mapping>(m, "Mapping")
      .def("__init__", [](Mapping* self, const std::string& path) { new (self) Mapping(path.c_str()); }, nb::arg("path"))
      .def_prop_ro("nbytes", &Mapping::size);
  m.def("packed_in", [](std::shared_ptr<Mapping> file, const std::string& format, int rows, int columns, int group, bool narrow_scales,
                        int64_t codes_at, int64_t scales_at, int64_t offsets_at) {
    return packed_in(std::move(file), {format_by_name(format), rows, columns, group, narrow_scales, codes_at, scales_at, offsets_at});
  }, nb::arg("file"), nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("group"), nb::arg("narrow_scales"),
     nb::arg("codes_at"), nb::arg("scales_at"), nb::arg("offsets_at"));
  m.def("linear", &bind_linear, nb::arg("tier"), nb::arg("matrix"), nb::arg("x"));
  m.def("maximal_matches", &bind_maximal_matches, nb::arg("text"), nb::arg("suffixes"), nb::arg("query"), nb::arg("minimum"));
  m.def("cpu_features", &cpu_features);
  m.def("has_tier", [](const std::string& name) {
    try {
      tier_by_name(name);
    } catch (const std::invalid_argument&) {
      return false;
    }
    return true;
  });
  m.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"), nb::call_guard<nb::gil_scoped_release>());
  m.def("int8_peak", &int8_peak, nb::arg("tier"), nb::arg("threads"), nb::arg("seconds"), nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Crowd>(m, "Crowd")  // for its tests: seconds since any beginning
      .def(nb::init<>())
      .def("alone", [](const Crowd& crowd, double now) { return crowd.alone(at(now)); }, nb::arg("now"))
      .def("note", [](Crowd& crowd, double now, double wall, double lost) { crowd.note(at(now), wall, lost); },
           nb::arg("now"), nb::arg("wall"), nb::arg("lost"));
  nb::class_<Executor>(m, "Executor")
      .def(nb::new_(&make_executor), nb::arg("tier"), nb::arg("buffers"), nb::arg("program"), nb::arg("logits"), nb::arg("kv_type"),
           nb::arg("layers"), nb::arg("pages"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("context"), nb::arg("vocabulary"), nb::arg("threads"))
      .def("run", &bind_run, nb::arg("tokens"), nb::arg("positions"), nb::arg("sequences"), nb::arg("tables"), nb::arg("outputs"))
      .def("copy_page", &Executor::copy_page, nb::arg("source"), nb::arg("target"))
      .def("profile", &Executor::profile)
      .def_prop_ro("meetings", &Executor::meetings)
      .def_prop_ro("kv_bytes", &Executor::kv_bytes)
      .def_prop_ro("steps_alone", &Executor::steps_alone)
      .def("buffer", [](const Executor& e, int index, size_t rows) {
        const auto& data = e.buffer(index);
        const size_t columns = e.shape(index).columns;
        if (rows * columns > data.size()) throw std::invalid_argument("buffer has fewer rows");
        return owned(std::vector<float>(data.begin(), data.begin() + static_cast<ptrdiff_t>(rows * columns)), rows, columns);
      });
}
