// Score an image with an exported detector, with ONNX Runtime's C# API.
//
//     dotnet new console --name Score
//     cd Score
//     dotnet add package Microsoft.ML.OnnxRuntime
//     (replace Program.cs with this file)
//     dotnet run -- part.onnx part_1.ppm
//
// Prints the verdict, score, margin and p-value of OnnxDetector, and the
// pixels of the anomaly map that are anomalous. The exit status is 0 for a
// normal or unsure image, 1 for an anomalous one, and 2 after an error.
//
// The graph takes pixels: uint8, RGB, row by row, of any height and width.
// A camera's frames can be passed as they are. If images come from files, turn
// them as their EXIF data say, blend transparent ones with white, and repeat
// gray values three times, as fit did; System.Drawing's bitmaps are BGR. Here
// they are read from binary PPM files, which need no library.

#nullable disable

using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text;
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

public sealed class Verdict
{
    public string Name;  // "normal", "unsure" or "anomalous"
    public double Score, Margin, PValue;
    public int AnomalousPixels;  // of the map
}

public sealed class Detector : IDisposable
{
    private readonly InferenceSession session;  // any threads may use it
    private readonly int smallestSide;
    private readonly double offset, unsureOffset, mapThreshold;
    private readonly double[] normalScores;

    public Detector(string path, int threads = 1)
    {
        using (var options = new SessionOptions())
        {
            options.IntraOpNumThreads = threads;
            session = new InferenceSession(path, options);
        }
        string text;
        var metadata = session.ModelMetadata.CustomMetadataMap;
        if (!metadata.TryGetValue("skpbas", out text))
            throw new InvalidDataException(path + " is not a detector");
        using (var document = JsonDocument.Parse(text))
        {
            var values = document.RootElement;
            JsonElement other;
            if (values.GetProperty("format").GetInt32() != 1)
                throw new InvalidDataException(path + " is not of format 1");
            if (values.TryGetProperty("tiles", out other))
                throw new InvalidDataException(path + " takes tiles");
            if (values.TryGetProperty("ignored", out other))
                throw new InvalidDataException(path + " takes ignored regions");
            if (values.GetProperty("dtype").GetString() != "uint8")
                throw new InvalidDataException(path + " takes floats");
            smallestSide = values.GetProperty("smallest_side").GetInt32();
            offset = values.GetProperty("offset").GetDouble();
            unsureOffset = values.GetProperty("unsure_offset").GetDouble();
            mapThreshold = values.GetProperty("map_threshold").GetDouble();
            normalScores = values.GetProperty("normal_scores")
                .EnumerateArray().Select(value => value.GetDouble()).ToArray();
        }
    }

    public Verdict Inspect(byte[] rgb, int height, int width)
    {
        if (Math.Min(height, width) < smallestSide)
            throw new InvalidDataException("the image is too small");
        var images = new DenseTensor<byte>(rgb, new[] { 1, height, width, 3 });
        var inputs = new List<NamedOnnxValue>
        {
            NamedOnnxValue.CreateFromTensor("images", images),
        };
        using (var outputs = session.Run(inputs, new[] { "score", "map" }))
        {
            var found = outputs.ToDictionary(output => output.Name);
            double score = -found["score"].AsTensor<float>().First();
            if (double.IsNaN(score) || double.IsInfinity(score))
                throw new InvalidDataException("the score is not finite");
            var map = found["map"].AsTensor<float>();  // (1, h, w)
            var lower = normalScores.Count(normal => normal <= score);
            return new Verdict
            {
                Name = score < offset ? "anomalous"
                    : score < unsureOffset ? "unsure" : "normal",
                Score = score,
                Margin = score - offset,
                PValue = (1.0 + lower) / (1.0 + normalScores.Length),
                AnomalousPixels = map.Count(value => value > mapThreshold),
            };
        }
    }

    public void Dispose()
    {
        session.Dispose();
    }
}

public static class Program
{
    public static int Main(string[] arguments)
    {
        if (arguments.Length != 2)
        {
            Console.Error.WriteLine("usage: Score part.onnx image.ppm");
            return 2;
        }
        try
        {
            int height, width;
            var rgb = ReadPpm(arguments[1], out height, out width);
            using (var detector = new Detector(arguments[0]))
            {
                var verdict = detector.Inspect(rgb, height, width);
                Console.WriteLine("verdict " + verdict.Name);
                Print("score", verdict.Score);
                Print("margin", verdict.Margin);
                Print("p_value", verdict.PValue);
                Print("anomalous_pixels", verdict.AnomalousPixels);
                return verdict.Name == "anomalous" ? 1 : 0;
            }
        }
        catch (Exception error)
        {
            Console.Error.WriteLine("error: " + error.Message);
            return 2;
        }
    }

    private static void Print(string name, double value)
    {
        var text = value.ToString("R", CultureInfo.InvariantCulture);
        Console.WriteLine(name + " " + text);
    }

    private static byte[] ReadPpm(string path, out int height, out int width)
    {
        using (var file = new BinaryReader(File.OpenRead(path)))
        {
            var kind = Word(file);
            var whole = int.TryParse(Word(file), out width);
            whole &= int.TryParse(Word(file), out height);
            if (kind != "P6" || !whole || Word(file) != "255"
                || width < 1 || height < 1 || width > 65535 || height > 65535)
                throw new InvalidDataException(
                    path + " is not a binary PPM of 8 bits");
            var size = checked(3 * width * height);
            var pixels = file.ReadBytes(size);
            if (pixels.Length != size)
                throw new InvalidDataException(path + " is cut off");
            return pixels;
        }
    }

    private static string Word(BinaryReader file)
    {
        var word = new StringBuilder();
        var next = (char)file.ReadByte();
        while (!char.IsWhiteSpace(next) && word.Length < 9)
        {
            word.Append(next);
            next = (char)file.ReadByte();
        }
        return word.ToString();
    }
}
