package node_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"example.com/keyring"
	"example.com/keyring/node"
)

// A server alone: it needs a directory and a KEK. For a cluster each server has an ID, Addr, Cluster, TLS and Peers too.
func ExampleStart() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "node") // yours stays: it holds the keys
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()}, // for a first try: FileKEK and module kms protect the files
	})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		log.Fatal(err)
	}

	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7")) // on any server: the leader encrypts
	if err != nil {
		log.Fatal(err)
	}
	if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil { // by itself every 30 days
		log.Fatal(err)
	}
	plaintext, err := n.Decrypt(ctx, ciphertext, []byte("users/7"))
	fmt.Printf("%s, %v; keys: %d\n", plaintext, err, len(n.Keyring().Keys()))
	// Output: secret, <nil>; keys: 2
}
