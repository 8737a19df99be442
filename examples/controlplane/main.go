package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
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

// usage is an error of the one who has called the program.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

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
		return help(stdout, "", usage{err})
	}
	name, rest := fs.Arg(0), fs.Args()[min(1, fs.NArg()):]
	if (name == "keys" || name == "servers") && len(rest) > 0 {
		name, rest = name+" "+rest[0], rest[1:]
	}
	c := cli{client{*url}, stdin, stdout, stderr, watched(stderr)}
	return help(stdout, name, c.run(ctx, name, rest))
}

//go:embed doc.go
var doc string

// usageOf returns the lines of the documentation that say how a command is called, or how all are if it is none.
func usageOf(command string) string {
	var all, own strings.Builder
	for line := range strings.Lines(doc) {
		line, ok := strings.CutPrefix(line, "//\tcontrolplane ")
		if !ok {
			continue
		}
		all.WriteString("controlplane " + line)
		if strings.HasPrefix(strings.TrimPrefix(line, "[-server URL] "), command+" ") {
			own.WriteString("controlplane " + line)
		}
	}
	return cmp.Or(own.String(), all.String())
}

// help tells somebody who has called a command in a wrong way how it is called. It is no error to ask for that.
func help(out io.Writer, command string, err error) error {
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(out, usageOf(command))
	case errors.As(err, new(usage)):
		err = usage{fmt.Errorf("%w\n%s", err, strings.TrimSuffix(usageOf(command), "\n"))}
	}
	return err
}

// run is a command.
func (c cli) run(ctx context.Context, name string, rest []string) error {
	switch name {
	case "init":
		return initialize(rest, c.out)
	case "serve":
		return serveCommand(ctx, rest, c.out, c.warn)
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
	case "servers add":
		return c.addServer(ctx, rest)
	case "servers remove":
		return c.removeServer(ctx, rest)
	case "servers token":
		return c.joinToken(ctx, rest)
	case "servers tokens":
		return c.joinTokens(ctx, rest)
	case "servers withdraw":
		return c.withdrawToken(ctx, rest)
	case "backup":
		return c.backup(ctx, rest)
	case "verify":
		return c.verify(ctx, rest)
	case "restore":
		return c.restore(ctx, rest)
	case "recover":
		return c.recover(ctx, rest)
	case "inspect":
		return c.inspect(ctx, rest)
	case "keys -h", "keys -help", "keys --help", "servers -h", "servers -help", "servers --help":
		return flag.ErrHelp
	}
	return usage{fmt.Errorf("there is no command %q", name)}
}

func initialize(args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("init", flag.ContinueOnError)
	port, servers := fs.Int("port", 8001, ""), fs.Int("servers", members, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if *servers < 1 || *servers > 9 {
		return usage{fmt.Errorf("init: -servers %d: 1 to 9 can be made", *servers)}
	}
	if err := setUp(args[0], *port, *servers); err != nil {
		return err
	}
	c, err := readCluster(args[0])
	if err != nil {
		return err
	}
	for i := range *servers {
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
	escrow, identity := fs.String("escrow", "", ""), fs.String("identity", "", "")
	token := fs.String("token", "", "") // a file: a command line can be read by others
	args, err := flags(fs, args, 2)
	if err != nil {
		return err
	}
	if *identity != "" && *escrow == "" {
		return usage{errors.New("serve: -identity is for -escrow")}
	}
	log := hclog.New(&hclog.LoggerOptions{Name: args[1], Output: stderr, Level: hclog.Info})
	return serve(ctx, args[0], raft.ServerID(args[1]), options{*every, *rate, *clicks, *escrow, *identity, *token, log, stdout})
}
