"""One program an engine, each run by the interpreter that has the engine; `work` is what all of them are measured with."""
