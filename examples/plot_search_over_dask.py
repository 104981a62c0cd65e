"""
Search and score over Dask
==========================

A search over parameters trains many detectors, and an archive of images may be
larger than one machine should read. Both run on a Dask cluster: searches
through joblib, scoring through :func:`skpbas.distributed.score_images`. This
page needs ``pip install skpbas[dask]``.

Images are generated and the network is the small one that comes with the
package, so that this page needs no download.
"""

# %%
# A cluster
# ---------
#
# Two workers with one thread each. Here they are threads of this process, to
# keep the page simple. For real work use processes:
# ``LocalCluster(n_workers=..., threads_per_worker=1)`` on one machine, under
# ``if __name__ == "__main__":`` in a script; or a client of a cluster of many
# machines.

from distributed import Client, LocalCluster

cluster = LocalCluster(
    n_workers=2,
    threads_per_worker=1,
    processes=False,
    dashboard_address="127.0.0.1:0",
)
client = Client(cluster)

# %%
# A search
# --------
#
# scikit-learn passes its fits to joblib, and joblib to the cluster. Folds
# train on normal images only; defective ones are used for scoring.

import joblib
from sklearn.model_selection import GridSearchCV

from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images
from skpbas.model_selection import NormalKFold
from skpbas.scorers import image_auroc_scorer

data = make_inspection_images(
    24, 12, kind="brushed_metal", size=64, random_state=0
)
detector = PBASDetector(
    "embedded",
    image_size=64,
    max_epochs=6,
    device="cpu",
    random_state=0,
)
search = GridSearchCV(
    detector,
    {"alpha": [0.1, 0.3, 1.0]},
    scoring=image_auroc_scorer,
    cv=NormalKFold(2),
)
with joblib.parallel_config(backend="dask"):
    search.fit(data.images, data.labels)
results = search.cv_results_
rows = zip(results["params"], results["mean_test_score"], strict=True)
for parameters, score in rows:
    print(f"{parameters}: image AUROC {score:.3f}")

# %%
# Scoring
# -------
#
# Images are passed by name, as the workers see them, in any number: a
# generator is consumed during the run. The detector is sent once to each
# worker. An image that cannot be read is reported, and the others are scored.

import tempfile
from pathlib import Path

from PIL import Image

from skpbas.distributed import score_images

archive = tempfile.TemporaryDirectory()
folder = Path(archive.name)
for i, image in enumerate(data.images):
    Image.fromarray(image).save(folder / f"{i:02d}.png")
(folder / "07.png").write_bytes(b"a damaged file")

paths = sorted(folder.glob("*.png"))
best = search.best_estimator_
results = sorted(score_images(best, paths, client=client, batch_size=4))
for result in results[5:10]:
    error = (result.error or "").replace(str(folder), "...")
    print(f"{result.index:3d} {result.score:7.3f} {result.label} {error}")

# %%
# To Parquet files
# ----------------
#
# With ``output`` the results are written to files, and the same call continues
# where an interrupted one ended.

summary = score_images(
    best,
    iter(paths),
    client=client,
    output=folder / "scores",
    images_per_file=10,
)
print(
    f"{summary.n_images} images in {summary.n_files} files; "
    f"{summary.n_failed} could not be read"
)

import pyarrow.dataset

table = pyarrow.dataset.dataset(folder / "scores").to_table()
print(table.select(["index", "score", "label"]).slice(5, 5).to_pydict())

# %%
# Close the cluster at the end of the page.

client.close()
cluster.close()
archive.cleanup()
