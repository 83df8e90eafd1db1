import torch
import torch.nn.functional as F

from project.models.mnist_mlp import MnistMLP


def batch(size: int = 12) -> dict:
    random = torch.Generator().manual_seed(0)
    image = torch.randn(size, 784, generator=random)
    return {"id": torch.arange(size), "image": image, "target": torch.arange(size) % 10, "weight": 1.0}


def built() -> MnistMLP:
    torch.manual_seed(0)
    model = MnistMLP(label_smoothing=0.0)
    model.configure_model()
    return model


def test_the_network_is_784_128_10_and_is_built_once() -> None:
    model = built()
    network = model.network
    model.configure_model()
    assert model.network is network
    assert [tuple(p.shape) for p in model.parameters()] == [(128, 784), (128,), (10, 128), (10,)]


def test_the_loss_is_the_mean_cross_entropy_times_the_weight() -> None:
    model, data = built(), batch()
    expected = F.cross_entropy(model(data["image"]), data["target"])
    assert torch.allclose(model.training_step(data, 0), expected)
    assert torch.allclose(model.training_step({**data, "weight": 0.5}, 0), expected / 2)


def test_predict_returns_the_step_contract() -> None:
    model, data = built(), batch()
    output = model.predict_step(data, 0)
    assert set(output) == {"id", "target", "prediction", "probabilities"}
    assert torch.equal(output["prediction"], model(data["image"]).argmax(1))
    assert torch.allclose(output["probabilities"].sum(1), torch.ones(12))
