// Controlplane is a control plane on hashicorp/raft with a keyring: a store of secrets and an
// issuer of workload identities, on three servers.
//
//	controlplane init [-port 8001] DIR       make certificates, KEKs and addresses for three servers
//	controlplane serve [-every 720h] [-rate 0] [-clicks] DIR ID       run one of them: s1, s2 or s3
//
//	controlplane [-server URL] put [-if VERSION] PATH         store standard input
//	controlplane [-server URL] get [-stale] PATH
//	controlplane [-server URL] list [PREFIX]
//	controlplane [-server URL] identity [-aud A,B] [-ttl 10m] WORKLOAD        print a token
//
//	controlplane [-server URL] keys status
//	controlplane [-server URL] keys rotate [-full]
//	controlplane [-server URL] keys remove [-force] [-now] ID
//
//	controlplane [-server URL] backup -to RECIPIENT,... FILE        everything, for age recipients; prints its SHA-256
//	controlplane verify -identity FILE BACKUP                       says whether it restores
//	controlplane restore -identity FILE [-sha256 SUM] DIR ID BACKUP       makes the directory of a server
//	controlplane recover DIR ID       makes a server the only one, when the majority is lost; it must not run
//	controlplane inspect [-kek FILE,...] KEYSTORE-DIR       what lies there; a star marks the KEKs that open a key
//
// URL is any server's, http://127.0.0.1:8001 if it is not given. There a page shows keys and
// servers, with buttons that rotate if the server runs with -clicks. -every is how often keys rotate,
// -rate how many secrets a second a full rotation may seal anew. KEYSTORE-DIR is DIR/ID/keystore, its
// KEK is DIR/ID.kek, and its server may run.
//
// For scripts, the exit status is
//
//	0   good
//	1   it failed: a disk, a server that is away or refuses, what is there already
//	2   wrong usage: a flag, an argument, a command
//	3   what was looked at is not good: verify says that the backup does not restore with these
//	    identities, inspect that something is wrong with a file, or that no KEK given opens it
//
// It is made to be copied from. What a program needs to have a keyring is in store.go, its own FSM,
// which asks Admit; data.go, the SealedData, with which full rotation and the removal of keys work;
// and serve.go, a server from its configuration to its end. The rest is the program: api.go for
// users and workloads, operator.go and page.html for operators, client.go the command line, backup.go
// backups from end to end, inspect.go a look into a keystore, progress.go what a terminal shows
// meanwhile, setup.go what a first trial needs.
//
// The API has no passwords and listens on loopback only: whoever is on the machine may do everything
// but what a workload's token narrows. A service in the field has TLS and authentication there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends what does not end by itself
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(exitStatus(err))
	}
}

// usage is an error of whoever has called the program.
type usage struct{ error }

// finding says that all went well but for what was looked at, which is not good.
type finding struct{ error }

// exitStatus is what the package's documentation says that an error is.
func exitStatus(err error) int {
	switch {
	case errors.As(err, new(usage)):
		return 2
	case errors.As(err, new(finding)):
		return 3
	}
	return 1
}

// run is the program.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	url := fs.String("server", "http://127.0.0.1:8001", "")
	if err := fs.Parse(args); err != nil {
		return usage{err}
	}
	c := cli{client{*url}, stdin, stdout, stderr, watched(stderr)}
	name, rest := fs.Arg(0), fs.Args()[min(1, fs.NArg()):]
	if name == "keys" && len(rest) > 0 {
		name, rest = "keys "+rest[0], rest[1:]
	}
	switch name {
	case "init":
		return initialize(rest, stdout)
	case "serve":
		return serveCommand(ctx, rest, stdout, stderr)
	case "put":
		return c.put(ctx, rest)
	case "get":
		return c.get(ctx, rest)
	case "list":
		return c.list(ctx, rest)
	case "identity":
		return c.identity(ctx, rest)
	case "keys status":
		return c.status(ctx, rest)
	case "keys rotate":
		return c.rotate(ctx, rest)
	case "keys remove":
		return c.remove(ctx, rest)
	case "backup":
		return c.backup(ctx, rest)
	case "verify":
		return c.verify(rest)
	case "restore":
		return c.restore(ctx, rest)
	case "recover":
		return c.recover(ctx, rest)
	case "inspect":
		return c.inspect(ctx, rest)
	}
	return usage{errors.New("init, serve, put, get, list, identity, keys status, rotate or remove, backup, verify, restore, recover or inspect: see go doc ./examples/controlplane")}
}

func initialize(args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("init", flag.ContinueOnError)
	port := fs.Int("port", 8001, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if err := setUp(args[0], *port); err != nil {
		return err
	}
	c, err := readCluster(args[0])
	if err != nil {
		return err
	}
	for i := range members {
		id := raft.ServerID(fmt.Sprintf("s%d", i+1))
		fmt.Fprintf(stdout, "controlplane serve %s %s   # http://%s\n", args[0], id, c.Servers[id].HTTP)
	}
	return nil
}

func serveCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	every := fs.Duration("every", 0, "") // zero is the keyring's own default
	rate := fs.Int("rate", 0, "")        // zero is no limit
	clicks := fs.Bool("clicks", false, "")
	args, err := flags(fs, args, 2)
	if err != nil {
		return err
	}
	log := hclog.New(&hclog.LoggerOptions{Name: args[1], Output: stderr, Level: hclog.Info})
	return serve(ctx, args[0], raft.ServerID(args[1]), options{*every, *rate, *clicks, log, stdout})
}
