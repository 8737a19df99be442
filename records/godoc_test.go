package records_test

import (
	"context"
	"errors"

	"example.com/keyring"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNode(ctx context.Context, dir string, kek keyring.KEK, secret []byte, use func(uint64, records.Record, [][]byte)) error {
	keys := keyring.NewFSM()
	m := records.New(keys)
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek}, App: m, Keys: keys, Data: m})
	if err != nil {
		return err
	}
	m.Connect(n.Keyring(), n.Apply)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	version, err := m.Put(ctx, records.Write{Name: "db/password", Parts: [][]byte{secret}})
	if err != nil {
		return err
	}
	r, parts, err := m.Open("db/password")
	use(version, r, parts)
	return err
}

func godocRaft(ctx context.Context, dir string, kek keyring.KEK, conf *raft.Config, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore, transport raft.Transport) error {
	keys := keyring.NewFSM()
	m := records.New(keys)
	r, err := raft.NewRaft(conf, keyring.Mux(keys, m), logs, stable, snapshots, transport)
	if err != nil {
		return err
	}
	k, err := keyring.Open(ctx, keyring.Config{Dir: dir, ID: conf.LocalID, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}, Data: m})
	if err != nil {
		return err
	}
	m.Connect(k, records.Through(r))
	return nil
}

func godocPut(ctx context.Context, m *records.Map, write records.Write, callPut func(context.Context, raft.ServerID, records.Write) (uint64, error)) (uint64, error) {
	version, err := m.Put(ctx, write)
	var elsewhere keyring.NotLeaderError
	if errors.As(err, &elsewhere) && !errors.Is(err, records.ErrUncertain) {
		version, err = callPut(ctx, elsewhere.Leader, write)
	}
	return version, err
}

var _ = []any{godocNode, godocRaft, godocPut}
