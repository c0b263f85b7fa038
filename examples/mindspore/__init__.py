"""The commands of the original MindSpore example, on the public interface of this package."""
