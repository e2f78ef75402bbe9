"""The form of our own files: a manifest, a run's record and a checkpoint are checked before any of them is used."""


def find_misfit(value, form, name=""):
    """What of a value is not of `form`, in words; "" if it fits. name: of the value, "" for the content of a file.

    A form is a type (float takes int too; numbers are from 0 to 1e15), None for anything, [form] a list, (form, ...) a
    list of that length, or {key: form} an object with these keys and no others; under the key str is the form of any
    other. It may also be a function, which says what is wrong with a value, "" if nothing.
    """
    shown = name or "it"
    if form is None:
        return ""
    if isinstance(form, type):
        fits = type(value) is form or (form is float and type(value) is int)
        return "" if fits and (form is str or 0 <= value < 1e15) else f"{shown} is {ascii(value)[:20]}"
    if callable(form):
        return f"{shown} {fault}" if (fault := form(value)) else ""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{shown} is no object"
        if missing := [key for key in form if key not in value and key is not str]:
            return f"no {missing[0]} in {shown}"
        unknown = [key for key in value if key not in form]
        if unknown and str not in form:
            return f"{unknown[0]} in {shown} is unknown"
        parts = [(x, form.get(key, form.get(str)), f"{key} in {name}" if name else key) for key, x in value.items()]
    elif type(value) is not list or (type(form) is tuple and len(value) != len(form)):
        return f"{shown} is no list" + f" of {len(form)}" * (type(form) is tuple)
    else:
        parts = [(x, form[0] if type(form) is list else form[i], name) for i, x in enumerate(value)]
    return next((misfit for part in parts if (misfit := find_misfit(*part))), "")
