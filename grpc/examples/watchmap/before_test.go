package main

// The service as it was before it had a keyring: package before, raft on its plain TCP transport, and users on a port of their own.

import (
	"context"
	"os"
	"time"

	"example.com/keyring/examples/watchmap/before"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// serveBefore is serve as it was.
func serveBefore(ctx context.Context, cfg config, d *disk) error {
	conf, err := cfg.usersTLS()
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	defer srv.Stop()
	trans, err := raft.NewTCPTransport(cfg.addr, nil, 3, 10*time.Second, os.Stderr)
	if err != nil {
		return err
	}
	defer trans.Close()

	s := before.New()
	r, err := startRaft(cfg, d, s, trans)
	if err != nil {
		return err
	}
	defer shutDown(r)
	s.Connect(records.Through(r)) // which it had of its own
	return newAPI(r, s).serve(ctx, ofUsers(cfg.addr), srv)
}
