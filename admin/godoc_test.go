package admin_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"

	"example.com/keyring/admin"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNew(n *node.Node, mux *http.ServeMux, operatorOf func(*tls.ConnectionState) (string, error), urls map[raft.ServerID]string) error {
	h, err := admin.New(n, admin.Config{ // or admin.ForKeyring(k, keyring.AddServerOptions{}) in the place of n
		Authorize: func(r *http.Request) (string, error) { return operatorOf(r.TLS) },
		URLs:      func() map[raft.ServerID]string { return urls },
	})
	if err != nil {
		return err
	}
	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))
	return nil
}

func godocCommand(ctx context.Context, withCertificate *http.Client) {
	err := admin.Command(ctx, os.Args[2:], admin.CommandOptions{HTTP: withCertificate})
	if err != nil {
		fmt.Fprintln(os.Stderr, "kvd:", err)
	}
	os.Exit(admin.ExitStatus(err))
}

var _ = []any{godocNew, godocCommand}
