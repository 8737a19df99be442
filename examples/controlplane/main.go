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

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends what does not end by itself
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		// Its further lines are indented: none passes for a message of the program's own.
		fmt.Fprintln(printable{os.Stderr}, "controlplane:", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		os.Exit(exitStatus(err))
	}
}

// usage is an error of the one who has called the program.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// exitStatus is what the package's documentation says that an error is.
func exitStatus(err error) int {
	if errors.As(err, new(usage)) {
		return 2
	}
	return admin.ExitStatus(err)
}

// run is the program. What is no command of its own is one of package admin.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c := cli{in: stdin, out: printable{stdout}, warn: printable{stderr}, secret: stdout}
	if isTerminal(stdout) {
		c.secret = c.out
	}
	server := fs.String("server", defaultServer, "")
	if fs.Parse(args) == nil {
		if command, own := c.commands()[fs.Arg(0)]; own {
			var err error
			if c.client, err = admin.NewClient(*server, nil); err != nil {
				return usage{fmt.Errorf("-server: %w", err)}
			}
			return help(c.out, fs.Arg(0), command(c, ctx, fs.Args()[1:]))
		}
	}
	return admin.Command(ctx, args, admin.CommandOptions{
		Program: admin.Program{Name: "controlplane", Server: defaultServer}, Usage: usageOf(""),
		Restore: restore, RestoreArgs: "DIR ID", Stdout: stdout, Stderr: stderr,
	})
}

// commands are those of users and workloads, and of who runs a server.
func (cli) commands() map[string]func(cli, context.Context, []string) error {
	return map[string]func(cli, context.Context, []string) error{
		"init":     func(c cli, _ context.Context, args []string) error { return initialize(args, c.out) },
		"serve":    func(c cli, ctx context.Context, args []string) error { return serveCommand(ctx, args, c.out, c.warn) },
		"put":      cli.put,
		"get":      cli.get,
		"list":     cli.list,
		"identity": cli.identity,
		"recover":  cli.recover,
	}
}

// restore makes the directory of one server from a backup, with the KEK and certificate that init
// has made. The others start with none and join it.
func restore(ctx context.Context, args []string, backup io.Reader, o keyring.RestoreOptions) (keyring.Manifest, error) {
	_, conf, err := newServer(args[0], raft.ServerID(args[1]), options{})
	if err != nil {
		return keyring.Manifest{}, err
	}
	return node.Restore(ctx, backup, conf, o)
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
		var of asked
		errors.As(err, &of)
		_, err = io.WriteString(out, usageOf(command)+of.flags)
	case errors.As(err, new(usage)):
		err = usage{fmt.Errorf("%w\n%s", err, strings.TrimSuffix(usageOf(command), "\n"))}
	}
	return err
}
