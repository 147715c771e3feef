"""The stub of the compiled module: the same names, classes, methods and arguments."""

import ast
import pathlib
import re

import flatstep
from flatstep import _core


def stub_tree():
    path = pathlib.Path(flatstep.__file__).with_name("_core.pyi")
    return ast.parse(path.read_text())


def argument_names(function):
    arguments = function.args.args + function.args.kwonlyargs
    return [a.arg for a in arguments if a.arg != "self"]


def compiled_argument_names(function):
    """Argument names from the signature line that pybind11 puts at the top of a docstring."""
    first_line = function.__doc__.splitlines()[0]
    inside = first_line[first_line.index("(") + 1 : first_line.rindex(") ->")]
    return [name for name in re.findall(r"(\w+): ", inside) if name != "self"]


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_the_names_are_the_same():
    tree = stub_tree()
    stubbed = {n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    assert stubbed == public(vars(_core))


def test_the_functions_have_the_same_arguments():
    functions = [n for n in stub_tree().body if isinstance(n, ast.FunctionDef)]
    assert functions
    for function in functions:
        compiled = compiled_argument_names(getattr(_core, function.name))
        assert argument_names(function) == compiled or not compiled, function.name


def test_the_classes_have_the_same_members():
    for node in stub_tree().body:
        if not isinstance(node, ast.ClassDef):
            continue
        compiled = getattr(_core, node.name)
        if any(getattr(base, "attr", "") == "Enum" for base in node.bases):
            stubbed = {target.id for n in node.body for target in n.targets}
            assert stubbed == set(compiled.__members__), node.name
            continue
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        attributes = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
        assert public(methods) | attributes == public(vars(compiled)), node.name
        for name, method in methods.items():
            if not any(getattr(d, "id", "") == "property" for d in method.decorator_list):
                names = compiled_argument_names(getattr(compiled, name))
                assert argument_names(method) == names or not names, f"{node.name}.{name}"
