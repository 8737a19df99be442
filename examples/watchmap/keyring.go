package main

// A server with its keyring. serveBefore in before_test.go is what it was before.

import (
	"context"
	"encoding/json"
	"net/http"
	"os"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/examples/watchmap/store"
	"example.com/keyring/port"
	"example.com/keyring/records"
)

// serve runs a server until ctx ends.
func serve(ctx context.Context, cfg config, d *disk) error {
	kek, err := keyring.FileKEK(cfg.path("kek"))
	if err != nil {
		return err
	}
	p, err := port.Listen(port.Config{
		ID: cfg.id, Cluster: "watchmap", Addr: cfg.addr, Logger: cfg.log,
		TLS: keyring.TLSFiles(cfg.path("tls.crt"), cfg.path("tls.key"), cfg.path("ca.crt")),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	if d.fresh && len(cfg.join) > 0 {
		if err := p.Join(ctx, cfg.join, cfg.token); err != nil {
			return err
		}
	}

	keys := keyring.NewFSM()
	values := records.New(keys)
	s := store.New(values)
	r, err := startRaft(cfg, d, keyring.Mux(keys, s), p.RaftTransport(d.log, keys))
	if err != nil {
		return err
	}
	defer shutDown(r)

	k, err := p.Open(ctx, keyring.Config{
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
	a := newAPI(r, s)
	a.HandleFunc("GET /ready", answer(func(r *http.Request) (any, error) { return nil, k.WaitReady(r.Context()) }))
	a.Handle("/keyring/", http.StripPrefix("/keyring", h))
	return a.serve(ctx, cfg)
}
