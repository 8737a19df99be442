package main

// A server with its keyring. serveBefore in before_test.go is what it was before.

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"time"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/examples/watchmap/store"
	keyringgrpc "example.com/keyring/grpc"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
)

// serve runs a server until ctx ends. Raft, the keyring and users are on the port of one grpc.Server.
func serve(ctx context.Context, cfg config, d *disk) error {
	kek, err := keyring.FileKEK(cfg.path("kek"))
	if err != nil {
		return err
	}
	peers, err := keyringgrpc.New(keyringgrpc.Config{
		ID: cfg.id, Cluster: "watchmap", Addr: cfg.addr, Logger: cfg.log, Clients: cfg.usersTLS,
		TLS: keyring.TLSFiles(cfg.path("tls.crt"), cfg.path("tls.key"), cfg.path("ca.crt")),
	})
	if err != nil {
		return err
	}
	srv := grpc.NewServer(peers.ServerOptions()...)
	defer srv.Stop()
	defer peers.Close()
	peers.Register(srv)

	keys := keyring.NewFSM()
	values := records.New(keys)
	s := store.New(values)
	r, err := startRaft(cfg, d, keyring.Mux(keys, s), raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: peers.StreamLayer(), MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second, Logger: cfg.log,
	}))
	if err != nil {
		return err
	}
	defer shutDown(r)

	k, err := peers.Open(ctx, keyring.Config{
		Dir: cfg.path("keystore"), Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}, Data: values, RekeyRate: cfg.rate,
		Audit: func(e keyring.Event) { json.NewEncoder(os.Stdout).Encode(e) },
	})
	if err != nil {
		return err
	}
	defer k.Close()
	defer k.TransferLeadership(context.WithoutCancel(ctx)) // of another server it is an error, and needs nothing
	values.Connect(k, records.Through(r))

	h, err := admin.New(admin.ForKeyring(k, keyring.AddServerOptions{}), admin.Config{
		Authorize: func(*http.Request) (string, error) { return "operator", nil }, Records: values, // who opens the socket may
	})
	if err != nil {
		return err
	}
	os.Remove(cfg.path("admin.sock")) // of a process that was killed
	operators, err := net.Listen("unix", cfg.path("admin.sock"))
	if err != nil {
		return err
	}
	defer operators.Close()
	go http.Serve(operators, h)

	a := newAPI(r, s)
	a.handle("Ready", func(ctx context.Context, _ store.Command) (any, error) { return nil, k.WaitReady(ctx) })
	return a.serve(ctx, cfg.addr, srv)
}
