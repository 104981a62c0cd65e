// Score an image with an exported detector, with ONNX Runtime's C++ API.
//
//     g++ -std=c++17 -O2 score.cpp -I.../onnxruntime/include -lonnxruntime
//     ./score part.onnx part_1.ppm
//
// Prints the verdict, score, margin and p-value of OnnxDetector, and the
// pixels of the anomaly map that are anomalous. The exit status is 0 for a
// normal or unsure image, 1 for an anomalous one, and 2 after an error.
//
// The graph takes pixels: uint8, RGB, row by row, of any height and width.
// A camera's frames can be passed as they are. If images come from files, turn
// them as their EXIF data say, blend transparent ones with white, and repeat
// gray values three times, as fit did. Here they are read from binary PPM
// files, which need no library.
//
// ONNX Runtime 1.21 or later (https://onnxruntime.ai) and nlohmann/json
// (https://json.nlohmann.me): headers and a library of each platform.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

struct Image {
  std::int64_t height, width;
  std::vector<std::uint8_t> pixels;  // height x width x 3
};

struct Verdict {
  std::string name;
  double score, margin, p_value;
  std::int64_t n_anomalous_pixels;  // of the map
};

Image read_ppm(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  std::int64_t width = 0, height = 0, largest = 0;
  file >> kind >> width >> height >> largest;
  if (!file || kind != "P6" || largest != 255 || width < 1 || height < 1 ||
      width > 65535 || height > 65535)
    throw std::runtime_error(path.string() + " is not a binary PPM of 8 bits");
  file.get();  // one space ends the header
  Image image{height, width, {}};
  image.pixels.resize(static_cast<std::size_t>(height * width * 3));
  const auto size = static_cast<std::streamsize>(image.pixels.size());
  file.read(reinterpret_cast<char*>(image.pixels.data()), size);
  if (file.gcount() != size)
    throw std::runtime_error(path.string() + " is cut off");
  return image;
}

class Detector {
 public:
  explicit Detector(const std::filesystem::path& path, int n_threads = 1)
      : session_(environment_, path.c_str(), options(n_threads)) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session_.GetModelMetadata();
    const auto text =
        metadata.LookupCustomMetadataMapAllocated("skpbas", allocator);
    if (!text) throw std::runtime_error(path.string() + " is not a detector");
    const auto values = nlohmann::json::parse(text.get());
    if (values.at("format") != 1)
      throw std::runtime_error(path.string() + " has another format than 1");
    if (values.contains("tiles"))
      throw std::runtime_error(path.string() + " takes tiles: see the guide");
    if (values.contains("ignored"))
      throw std::runtime_error(path.string() + " takes ignored regions: export it with ignored=False");
    if (values.at("dtype") != "uint8")
      throw std::runtime_error(path.string() + " takes floats, not bytes");
    smallest_side_ = values.at("smallest_side");
    offset_ = values.at("offset");
    unsure_offset_ = values.at("unsure_offset");
    map_threshold_ = values.at("map_threshold");
    values.at("normal_scores").get_to(normal_scores_);  // ascending
  }

  Verdict inspect(Image& image) {
    if (std::min(image.height, image.width) < smallest_side_)
      throw std::runtime_error("the image is too small for the network");
    const std::array<std::int64_t, 4> shape{1, image.height, image.width, 3};
    const auto memory =
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<std::uint8_t>(
        memory, image.pixels.data(), image.pixels.size(), shape.data(),
        shape.size());
    const std::array inputs{"images"};
    const std::array outputs{"score", "map"};
    const auto found =
        session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &input, 1,
                     outputs.data(), outputs.size());

    const double score = -double{found[0].GetTensorData<float>()[0]};
    if (!std::isfinite(score))  // is not normal
      throw std::runtime_error("the score is not finite");
    const float* map = found[1].GetTensorData<float>();
    const auto size = found[1].GetTensorTypeAndShapeInfo().GetElementCount();
    const auto n_pixels =
        std::count_if(map, map + size, [this](float value) {
          return value > map_threshold_;
        });
    const auto n_lower =
        std::upper_bound(normal_scores_.begin(), normal_scores_.end(), score) -
        normal_scores_.begin();
    const double p_value = (1.0 + static_cast<double>(n_lower)) /
                           (1.0 + static_cast<double>(normal_scores_.size()));
    const char* name = score < offset_          ? "anomalous"
                       : score < unsure_offset_ ? "unsure"
                                                : "normal";
    return {name, score, score - offset_, p_value, n_pixels};
  }

 private:
  static Ort::SessionOptions options(int n_threads) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(n_threads);
    return options;
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "skpbas"};
  Ort::Session session_;  // any number of threads may use it
  std::int64_t smallest_side_ = 0;
  double offset_ = 0, unsure_offset_ = 0, map_threshold_ = 0;
  std::vector<double> normal_scores_;
};

int main(int n_arguments, char** arguments) {
  if (n_arguments != 3) {
    std::cerr << "usage: score part.onnx image.ppm\n";
    return 2;
  }
  try {
    Detector detector(arguments[1]);
    Image image = read_ppm(arguments[2]);
    const Verdict verdict = detector.inspect(image);
    std::cout << std::setprecision(std::numeric_limits<double>::max_digits10)
              << "verdict " << verdict.name << "\nscore " << verdict.score
              << "\nmargin " << verdict.margin << "\np_value "
              << verdict.p_value << "\nanomalous_pixels "
              << verdict.n_anomalous_pixels << "\n";
    return verdict.name == "anomalous" ? 1 : 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
