package node_test

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocStart(ctx context.Context, kek keyring.KEK, use func([]byte)) error {
	n, err := node.Start(ctx, node.Config{
		ID:      "s1",
		Dir:     "/var/lib/myservice",
		KEKs:    []keyring.KEK{kek},
		Addr:    "10.0.0.1:7900",
		Cluster: "prod",
		TLS:     keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
		Peers:   map[raft.ServerID]string{"s1": "10.0.0.1:7900", "s2": "10.0.0.2:7900", "s3": "10.0.0.3:7900"},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
	use(ciphertext)
	return err
}

var _ = []any{godocStart}
