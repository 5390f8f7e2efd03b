"""Train adapters for the host's models: open a model, prepare its inputs, compute the trainer's loss.

    with opened(model) as session:
        family = trained_family(session.model)
        latent = latent_of(session.model, encoded_picture, session.device)
        sample = Sample(latent, caption_of(session.model, conditioning, latent))
        net = session.adapted(rank=family.rank, preset=family.preset, include=family.include)
        loss = DiffusionLoss(session=session, times=family.times)
        train_network(net, [[sample]], loss, TrainOptions(steps=100, lr=family.lr))
        net.save_weights("mine.safetensors")

`opened` takes the patcher of text encoders too.
"""
