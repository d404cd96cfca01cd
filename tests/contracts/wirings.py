"""Small networks of every wiring that channel surgery must understand, or must leave alone."""

import torch
from torch import nn


class Dense(nn.Module):
    """DenseNet wiring: everything is concatenated, BatchNorm before the convolution, a flatten of 64 positions a channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.layers, c = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(), 8
        for _ in range(3):
            self.layers.append(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 12, 1), nn.BatchNorm2d(12), nn.Sigmoid(),
                                             nn.Conv2d(12, 4, 3, padding=1)))
            c += 4
        self.head = nn.Linear(c * 64, 10)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(nn.functional.max_pool2d(x, 4).flatten(1))


class Branches(nn.Module):
    """Two branches concatenated, depthwise, residual, grouped, transposed convolution, GroupNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.grouped, self.up = nn.Conv2d(16, 24, 3, groups=4), nn.ConvTranspose2d(24, 12, 2, 2)
        self.norm, self.head = nn.GroupNorm(4, 12), nn.Conv2d(12, 10, 1)

    def forward(self, x):
        y = torch.cat([self.a(x), self.b(x)], 1)
        y = y + self.point(self.depthwise(y))
        return self.head(torch.relu(self.norm(self.up(torch.relu(self.grouped(y)))))).mean((2, 3))


class Gates(nn.Module):
    """Gated linear unit (chunk), PReLU, squeeze-and-excitation, a spatial gate of one channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3)
        self.squeeze, self.excite, self.spatial = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Conv2d(12, 1, 1)
        self.act, self.head = nn.PReLU(12), nn.Linear(12, 5)

    def forward(self, x):
        u, v = self.a(x).chunk(2, 1)
        y = self.act(self.b(u * torch.sigmoid(v)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head((y * torch.sigmoid(self.spatial(y))).amax((2, 3)))


class Halves(nn.Module):
    """The halves of a split go different ways and come back in the other order."""

    def __init__(self):
        super().__init__()
        self.stem, self.right, self.norm = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9)
        self.mix, self.head = nn.Conv2d(15, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        return self.head(self.mix(torch.relu(torch.cat([self.norm(self.right(right)), left], 1))).mean((2, 3)))


class Signal(nn.Module):
    """One-dimensional convolutions, a concatenation, a flatten, two linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3, padding=1)
        self.c, self.hidden, self.head = nn.Conv1d(16, 6, 3), nn.Linear(6 * 14, 12), nn.Linear(12, 3)

    def forward(self, x):
        y = torch.relu(self.norm(self.a(x)))
        return self.head(torch.relu(self.hidden(self.c(torch.cat([y, self.b(y)], 1)).flatten(1))))


class Shuffle(nn.Module):
    """A channel shuffle: the channels before it cannot be followed, those after it can."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x):
        y = self.stem(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.b(torch.relu(self.a(y))).mean((2, 3)))


class Mixer(nn.Module):
    """Token mixing: as many tokens as channels, so that only the dimension tells them apart."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.tokens_in, self.tokens_out = nn.Linear(16, 24), nn.Linear(24, 16)
        self.channels_in, self.channels_out, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(256, 4)

    def forward(self, x):
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + self.tokens_out(torch.relu(self.tokens_in(self.norm(y).transpose(1, 2)))).transpose(1, 2)
        return self.head((y + self.channels_out(torch.relu(self.channels_in(self.norm(y))))).flatten(1))


class TiedToInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.same, self.inner, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.inner(x + self.same(x)).mean((2, 3)))


class FlattenVGG(nn.Module):
    """The classic VGG head: every channel of the last map owns H·W columns of the linear layer."""

    def __init__(self, widths=(16, 32, 64), size=32):
        super().__init__()
        layers, c = [], 3
        for width in widths:
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            c = width
        self.features, self.flatten = nn.Sequential(*layers), nn.Flatten()
        self.classifier = nn.Sequential(nn.Linear(c * (size >> len(widths)) ** 2, 40), nn.ReLU(), nn.Linear(40, 10))

    def forward(self, x):
        return self.classifier(self.flatten(self.features(x)))


class FixedView(nn.Module):
    """Its code spells out a number of channels."""

    def __init__(self):
        super().__init__()
        self.grow, self.norm, self.out = nn.Linear(10, 8 * 16), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z):
        return self.out(torch.relu(self.norm(self.grow(z).view(-1, 8, 4, 4))))


class Branching(nn.Module):
    """Control flow that depends on the data: it runs, but no graph can be captured."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        y = self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))
        return y * 2 if y.sum() > 0 else y * 3


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with uneven statistics, so that a mistake in them shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(.5, 2, generator=generator)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(module.weight, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def hugging_face(name: str) -> nn.Module:
    """A tiny random network of `transformers`; no download."""
    import transformers as hf
    torch.manual_seed(1)
    model = {
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
                                                                 image_size=32, patch_size=8, num_labels=10)),
        "resnet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=10)),
        "regnet": lambda: hf.RegNetForImageClassification(hf.RegNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8,
                                                                          layer_type="y", num_labels=5)),
        "mobilenet": lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=.25, image_size=32, num_labels=5)),
        "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2],
                                                                    window_size=4, num_labels=5)),
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                                       intermediate_size=24)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                            num_key_value_heads=1, intermediate_size=24)),
    }[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, .15)
    return settle(model)
