"Package metadata, all of it from settings.ini; building and installing need no nbdev."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cp = ConfigParser(delimiters=["="], interpolation=None)
cp.read(here / "settings.ini", encoding="utf-8")
c = cp["DEFAULT"]
lib, lib_path = c["lib_name"], c["lib_path"]


def words(key): return shlex.split(c.get(key, ""))


# extras: one per `*_requirements` key; `all` is every extra a user may want, `dev` also brings those the tests use
extras = {k.removesuffix("_requirements"): words(k) for k in c if k.endswith("_requirements")}
extras["all"] = sorted({r for e in ("clip", "text", "data", "label", "bert", "java", "explore") for r in extras[e]})
extras["dev"] = [*extras["dev"], *(r for e in ("clip", "text", "data", "label", "bert", "java", "explore", "docs") for r in extras[e])]

# notebooks travel in the wheel as the packages vlnotes.experiments and vlnotes.tutorials
notebooks = {f"{lib}.{d}": f"{c['nbs_path']}/{d}" for d in ("experiments", "tutorials")
             if (here / c["nbs_path"] / d / "__init__.py").exists()}
readme = here / "README.md"

setup(
    name=lib, version=c["version"], description=c["description"], keywords=c["keywords"],
    author=c["author"], author_email=c["author_email"], url=c["git_url"], license="Apache-2.0",
    project_urls={"Documentation": c["doc_host"] + c["doc_baseurl"], "Source": c["git_url"],
                  "Changes": f"{c['git_url']}/blob/{c['branch']}/CHANGELOG.md"},
    classifiers=["Development Status :: 3 - Alpha", f"Intended Audience :: {c['audience']}",
                 "Operating System :: POSIX :: Linux", "Operating System :: MacOS",
                 *(f"Programming Language :: Python :: 3.{v}" for v in (11, 12, 13)),
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else c["description"],
    long_description_content_type="text/markdown",
    python_requires=">=" + c["min_python"], install_requires=words("requirements"), extras_require=extras,
    packages=[*find_packages(include=[lib_path, lib_path + ".*"]), *notebooks], package_dir=notebooks,
    package_data={lib: ["references.bib", "calibration.json", "weights/*.safetensors", "weights/*.json", "weights/*.md"],
                  **{p: ["*.ipynb", "results/*.json"] for p in notebooks}},
    entry_points={"console_scripts": words("console_scripts"), **{f"{lib}.{k}": words(k) for k in ("describers", "importers", "datasets")},
                  "nbdev": [f"{lib}={lib_path}._modidx:d"]},
    zip_safe=False)
