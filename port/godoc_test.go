package port_test

import (
	"context"
	"errors"

	"example.com/keyring"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocListen(ctx context.Context, dir string, kek keyring.KEK, conf *raft.Config, app raft.FSM, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore) error {
	keys := keyring.NewFSM()
	p, err := port.Listen(port.Config{
		ID: "s1", Cluster: "prod", Addr: "10.0.0.1:7900", TLS: keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
	})
	if err != nil {
		return err
	}
	r, err := raft.NewRaft(conf, keyring.Mux(keys, app), logs, stable, snapshots, p.RaftTransport(logs, keys))
	if err != nil {
		return errors.Join(err, p.Close())
	}
	k, err := p.Open(ctx, keyring.Config{Dir: dir, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}})
	return errors.Join(err, k.Close(), r.Shutdown().Error(), p.Close())
}

var _ = []any{godocListen}
