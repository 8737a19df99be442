package keyring_test

import (
	"context"
	"errors"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNode(ctx context.Context, dir string, kek keyring.KEK) error {
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{kek}, // see FileKEK
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
	if err != nil {
		return err
	}
	plaintext, err := n.Decrypt(ctx, ciphertext, []byte("users/7"))
	if string(plaintext) != "secret" {
		return errors.New("not what was encrypted")
	}
	return err
}

func godocOpen(ctx context.Context, dir string, kek keyring.KEK, conf *raft.Config, app raft.FSM, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore, transport raft.Transport, peers keyring.Transport) error {
	fsm := keyring.NewFSM()
	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), logs, stable, snapshots, transport)
	if err != nil {
		return err
	}
	keys, err := keyring.Open(ctx, keyring.Config{
		Dir: dir, ID: conf.LocalID, Raft: r, FSM: fsm, Transport: peers, KEKs: []keyring.KEK{kek},
	})
	return errors.Join(err, keys.WaitReady(ctx))
}

var _ = []any{godocNode, godocOpen}
