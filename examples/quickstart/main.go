// Quickstart encrypts files with a keyring of one server in one process.
//
//	go run ./examples/quickstart [-dir D] [-kek FILE] FILE...
//
// It encrypts each FILE into D/sealed, makes a new key, decrypts the ciphertexts with the old key, and shows the keys
// and the files. Run again with the same -dir, it also decrypts the ciphertexts of earlier runs.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
)

const usage = `usage: quickstart [-dir D] [-kek FILE] FILE...

Encrypts each FILE into D/sealed, makes a new key, and decrypts the ciphertexts.

  -dir D      keep keys and ciphertexts in D (default: a temporary directory, removed at the end)
  -kek FILE   wrap the keys under the 32 bytes in FILE; "head -c 32 /dev/urandom >FILE" makes
              one (default: anyone who reads the key files has the keys)
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dir, kekFile := flags.String("dir", "", ""), flags.String("kek", "", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(stdout, usage)
		return err
	case err != nil:
		return fmt.Errorf("%w (-h shows the usage)", err)
	case flags.NArg() == 0:
		return errors.New("no FILE to encrypt (-h shows the usage)")
	}
	kek := keyring.InlineKEK()
	if *kekFile != "" {
		if kek, err = keyring.FileKEK(*kekFile); err != nil {
			return err
		}
	}
	if *dir == "" {
		if *dir, err = os.MkdirTemp("", "quickstart-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(*dir)) }()
		fmt.Fprintf(stdout, "everything goes to %s, which is removed at the end; use -dir to keep it\n", *dir)
	}

	ctx, cancel := context.WithTimeout(ctx, time.Minute) // a server alone is ready in seconds
	defer cancel()
	node, err := node.Start(ctx, node.Config{Dir: *dir, KEKs: []keyring.KEK{kek}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	if err := node.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	status, err := node.Keyring().Status(ctx)
	if err != nil {
		return err
	}
	for _, p := range status.Problems {
		fmt.Fprintln(stdout, "warning:", p)
	}
	d := demo{*dir, node, stdout}
	if err := d.sealAndOpen(ctx, flags.Args()); err != nil {
		return err
	}
	d.show()
	return nil
}

// demo works in a directory with a server that is ready.
type demo struct {
	dir  string
	node *node.Node
	out  io.Writer
}

// sealAndOpen opens what earlier runs sealed, seals the files, and opens them after a rotation.
func (d demo) sealAndOpen(ctx context.Context, files []string) error {
	if err := os.MkdirAll(filepath.Join(d.dir, "sealed"), 0o700); err != nil {
		return err
	}
	earlier, err := os.ReadDir(filepath.Join(d.dir, "sealed"))
	if err != nil {
		return err
	}
	for _, e := range earlier {
		if _, err := d.open(ctx, e.Name()); err != nil {
			return err
		}
	}
	if len(earlier) > 0 {
		fmt.Fprintf(d.out, "decrypted all %d ciphertexts of earlier runs\n", len(earlier))
	}
	var sealed []string
	for _, file := range files {
		name, key, err := d.seal(ctx, file)
		if err != nil {
			return fmt.Errorf("seal %s: %w", file, err)
		}
		sealed = append(sealed, name)
		fmt.Fprintf(d.out, "encrypted %s as sealed/%s under key %s\n", file, name, short(key))
	}
	key, err := d.node.Rotate(ctx, keyring.RotateOptions{})
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "rotated   the %s key is %s\n", key.State, short(key.ID))
	for i, name := range sealed {
		got, err := d.open(ctx, name)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(files[i])
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("sealed/%s does not hold what %s holds now", name, files[i])
		}
		fmt.Fprintf(d.out, "decrypted sealed/%s: equal to %s\n", name, files[i])
	}
	return nil
}

// seal encrypts a file into a new one in sealed/ and returns its name and the key's. The name
// is the AAD: a ciphertext put in the place of another does not open.
func (d demo) seal(ctx context.Context, file string) (name string, key keyring.KeyID, err error) {
	plaintext, err := os.ReadFile(file)
	if err != nil {
		return "", key, err
	}
	for i := 1; err == nil; i++ { // until the name is free
		name = fmt.Sprintf("%s.%d", filepath.Base(file), i)
		_, err = os.Lstat(filepath.Join(d.dir, "sealed", name))
	}
	ciphertext, err := d.node.Encrypt(ctx, plaintext, []byte(name))
	if err != nil {
		return "", key, err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "sealed", name), ciphertext, 0o600); err != nil {
		return "", key, err
	}
	key, err = keyring.CiphertextKeyID(ciphertext)
	return name, key, err
}

// open decrypts a file in sealed/.
func (d demo) open(ctx context.Context, name string) ([]byte, error) {
	ciphertext, err := os.ReadFile(filepath.Join(d.dir, "sealed", name))
	if err != nil {
		return nil, err
	}
	plaintext, err := d.node.Decrypt(ctx, ciphertext, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open sealed/%s: %w", name, err)
	}
	return plaintext, nil
}

// show prints the keys and where things lie. No key material is in raft's files.
func (d demo) show() {
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "\nKEY\tSTATE\tAGE\tHOLDERS\n")
	for _, k := range d.node.Keyring().Keys() {
		age := time.Since(k.Created).Round(time.Millisecond)
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\n", short(k.ID), k.State, age, strings.Trim(fmt.Sprint(k.Holders), "[]"))
	}
	fmt.Fprintf(w, "\nFILES IN %s\tCONTENTS\n", d.dir)
	fmt.Fprintf(w, "keystore/*.nks.json\teach key, wrapped under the KEK\n")
	fmt.Fprintf(w, "keystore/keystore.id\twhich keystore this is\n")
	fmt.Fprintf(w, "raft/raft.db\traft's log: metadata of the keys\n")
	fmt.Fprintf(w, "raft/snapshots\traft's snapshots: the same\n")
	fmt.Fprintf(w, "sealed/*\teach ciphertext\n")
}

func short(id keyring.KeyID) string { return id.String()[:8] }
