package llamaherd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	v1 "llamaherd.dev/llamaherd/v1"
)

// leastPingInterval is grpc-go's own: it raises every shorter one to 10 s, which no test should have to wait for.
//
//go:linkname leastPingInterval google.golang.org/grpc/internal.KeepaliveMinPingTime
var leastPingInterval time.Duration

// playsAlone makes a process of this program a gateway, instead of running the tests.
const playsAlone = "TestAGatewayOfItsOwn"

// permitsPings is what the service does too, at intervals that no test waits for.
func permitsPings() grpc.ServerOption {
	return grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Microsecond})
}

// TestAGatewayOfItsOwn is no test, but the process that one of them freezes: it begins every generation, and says no more.
func TestAGatewayOfItsOwn(t *testing.T) {
	if os.Getenv(playsAlone) == "" {
		t.Skip("it is run by another test")
	}
	fmt.Println(play(t, &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		return sendAll(stream, true, tokens(0, 2))
	}}, permitsPings()))
	select {}
}

// gatewayProcess starts that; it ends with the test.
func gatewayProcess(t *testing.T) (process *os.Process, address string) {
	t.Helper()
	command := exec.Command(os.Args[0], "-test.run=^"+playsAlone+"$")
	command.Env = append(os.Environ(), playsAlone+"=1")
	runtime.LockOSThread() // the kernel ends the process with the thread that has started it, too
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		runtime.UnlockOSThread()
	})
	address, err = bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return command.Process, strings.TrimSpace(address)
}

func TestAGatewayFrozenInMidStreamIsNotSeen(t *testing.T) {
	before := leastPingInterval
	leastPingInterval = 0
	defer func() { leastPingInterval = before }()
	pings := keepalive.ClientParameters{Time: 50 * time.Millisecond, Timeout: 200 * time.Millisecond}

	process, frozen := gatewayProcess(t)
	played := &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		return sendAll(stream, false, tokens(0, 3), finished(0), completed(3))
	}}
	addresses := []string{frozen, play(t, played, permitsPings())}
	client := clientOf(t, addresses, WithDialOptions(grpc.WithKeepaliveParams(pings)))
	client.calls.targets.turn = 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream := client.Generate(ctx, Text("Once"))
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	text := stream.Delta().Text
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if text += readAll(stream); text != "xxxheld back" || stream.Err() != nil {
		t.Errorf("%q, %v", text, stream.Err())
	}
}
