package main

// The service as it was before it had a keyring: package before, on raft's plain TCP transport.

import (
	"context"
	"os"
	"time"

	"example.com/keyring/examples/watchmap/before"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// serveBefore is serve as it was.
func serveBefore(ctx context.Context, cfg config, d *disk) error {
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
	return newAPI(r, s).serve(ctx, cfg)
}
