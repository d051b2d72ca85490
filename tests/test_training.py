"""Training: the demo's two models without dropout follow torch's loss curves; saved and resumed either way."""

import copy

import pytest
import torch

import fastnn
from fastnn.testing import networks

STEPS = 20


class FCNet(torch.nn.Module):
    """The demo's fully connected model."""

    def __init__(self, nn):
        super().__init__()
        self.fc1 = nn.Linear(784, 128)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


def convolutional(nn):
    """The demo's convolutional model without its dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 128), nn.ELU(), nn.Linear(128, 10),
    )  # fmt: skip


def digits(n, seed):
    """Images of ten noisy patterns, and which pattern each has."""
    patterns = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    return patterns[labels] + torch.randn(n, 1, 28, 28, generator=generator), labels


def pair(build):
    torch.manual_seed(0)
    theirs = build(torch.nn)
    ours = build(fastnn)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def curve(model, optimizer, steps=STEPS):
    losses = []
    for step in range(steps):
        x, labels = digits(32, seed=100 + step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


@pytest.mark.parametrize("build", [FCNet, convolutional], ids=lambda b: b.__name__)
def test_loss_curves(build, strict, capability):
    """Within 1e-3 of torch's at every step, without a fallback, and the model learns."""
    theirs, ours = pair(build)
    expected = curve(theirs, sgd(theirs))
    found = curve(ours, sgd(ours))
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[-1] < 0.3 * found[0]
    x, labels = digits(200, seed=1)
    theirs.eval(), ours.eval()
    assert (ours(x).argmax(1) == labels).float().mean() > 0.9
    assert (ours(x).argmax(1) == theirs(x).argmax(1)).float().mean() > 0.98


def test_adam():
    theirs, ours = pair(convolutional)
    curves = [curve(m, torch.optim.Adam(m.parameters(), lr=1e-3), 10) for m in (theirs, ours)]
    assert curves[1] == pytest.approx(
        curves[0], rel=1e-2
    )  # Adam divides by tiny gradients: rounding grows faster


def test_saved_with_one_resumed_with_the_other(tmp_path):
    """A checkpoint of model and optimizer of torch.nn goes on in fastnn, and back."""
    whole, _ = pair(convolutional)
    optimizer = sgd(whole)
    expected = curve(whole, optimizer, 4) + curve(whole, optimizer, 4) + curve(whole, optimizer, 4)
    model, _ = pair(convolutional)
    optimizer, found = sgd(model), []
    for library in (fastnn, torch.nn, None):
        found += curve(model, optimizer, 4)
        if library is not None:
            path = tmp_path / "checkpoint.pt"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
            saved = torch.load(path, weights_only=True)
            model = convolutional(library)
            model.load_state_dict(saved["model"])
            optimizer = sgd(model)
            optimizer.load_state_dict(saved["optimizer"])
    assert found == pytest.approx(expected, rel=1e-3)


def test_with_dropout():
    """The demo's model as it is learns too."""
    torch.manual_seed(0)
    layers = list(convolutional(fastnn))
    model = fastnn.Sequential(*layers[:-1], fastnn.Dropout(0.5), layers[-1])
    losses = curve(model, sgd(model), 30)
    assert losses[-1] < 0.5 * losses[0]


def test_runs_repeat():
    """Same seed, same bits, twice; also with another number of threads."""
    results = []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        x, labels = digits(32, seed=5)
        layers = list(convolutional(fastnn))
        model = fastnn.Sequential(*layers[:-1], fastnn.Dropout(0.5), layers[-1])
        y = model(x)
        gradient = torch.nn.functional.one_hot(labels, 10).float()
        results.append([y.detach(), *torch.autograd.grad(y, list(model.parameters()), gradient)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def smooth(nn):
    """`vgg` without kinks, so that its gradient is continuous; its convolutions run on Winograd's algorithm."""
    layers = []
    for layer in networks.vgg(nn):
        if isinstance(layer, torch.nn.ReLU):
            layer = nn.SiLU()
        elif isinstance(layer, torch.nn.MaxPool2d):
            layer = nn.AvgPool2d(2)
        layers.append(layer)
    return nn.Sequential(*layers)


def test_gradient_of_a_smooth_network():
    """3 times torch's error against float64 at most, over all parameters."""
    torch.manual_seed(0)
    theirs = smooth(torch.nn)
    x = torch.randn(16, 3, 32, 32)

    def gradients(model, x):
        return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    expected = gradients(copy.deepcopy(theirs).double(), x.double())
    ours = smooth(fastnn)
    ours.load_state_dict(theirs.state_dict())

    def error(model):
        return max(float((a - b).abs().max()) for a, b in zip(gradients(model, x), expected, strict=True))

    assert error(ours) <= 3 * error(theirs)
