package main

// What operators call: the commands of package admin, for the server of a directory.

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"example.com/keyring"
	"example.com/keyring/admin"
	"github.com/hashicorp/raft"
)

// command runs a command of an operator's, for the server of a directory.
func command(ctx context.Context, cfg config, args []string) error {
	socket := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", cfg.path("admin.sock"))
	}
	return admin.Command(ctx, args, admin.CommandOptions{
		Program: admin.Program{Name: "watchmap -dir " + cfg.dir, Server: "http://watchmap"},
		HTTP:    &http.Client{Transport: &http.Transport{DialContext: socket}},
		Restore: func(ctx context.Context, _ []string, backup io.Reader, o keyring.RestoreOptions) (keyring.Manifest, error) {
			return restore(ctx, cfg, backup, o)
		},
	})
}

// restore makes the directory of a server that is its whole cluster, from a backup.
func restore(ctx context.Context, cfg config, backup io.Reader, o keyring.RestoreOptions) (m keyring.Manifest, err error) {
	d, err := openDisk(cfg)
	if err != nil {
		return m, err
	}
	defer d.log.Close()
	if !d.fresh {
		return m, fmt.Errorf("raft has run in %s", cfg.dir)
	}
	kek, err := keyring.FileKEK(cfg.path("kek"))
	if err != nil {
		return m, err
	}
	o.Dir, o.KEKs, o.Snapshots = cfg.path("keystore"), []keyring.KEK{kek}, d.snapshots
	o.Server = raft.Server{ID: cfg.id, Address: raft.ServerAddress(cfg.addr)}
	return keyring.Restore(ctx, backup, o)
}
