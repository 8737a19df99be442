package keyringgrpc_test

import (
	"context"
	"errors"
	"net"
	"time"

	"example.com/keyring"
	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNew(ctx context.Context, dir string, kek keyring.KEK, listener net.Listener, conf *raft.Config, app raft.FSM, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore) error {
	peers, err := keyringgrpc.New(keyringgrpc.Config{
		ID: "s1", Cluster: "prod", Addr: "10.0.0.1:7900", TLS: keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
	})
	if err != nil {
		return err
	}
	server := grpc.NewServer(peers.ServerOptions()...)
	peers.Register(server) // beside the host's own services
	go server.Serve(listener)
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: peers.StreamLayer(), MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second,
	})
	fsm := keyring.NewFSM()
	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), logs, stable, snapshots, transport)
	if err != nil {
		return err
	}
	keys, err := peers.Open(ctx, keyring.Config{Dir: dir, Raft: r, FSM: fsm, KEKs: []keyring.KEK{kek}})
	return errors.Join(err, keys.Close(), r.Shutdown().Error(), peers.Close())
}

var _ = []any{godocNew}
