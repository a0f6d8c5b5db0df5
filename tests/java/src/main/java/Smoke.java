import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.*;

/** Smoke test of the official Java client: produce and consume, a partitioned topic, a reader, seek. */
public class Smoke {
    static void equal(String what, Object got, Object want) {
        if (!got.equals(want)) {
            throw new AssertionError(what + ": got " + got + ", want " + want);
        }
    }

    static List<MessageId> publish(PulsarClient client, String topic, int count) throws Exception {
        List<MessageId> ids = new ArrayList<>();
        try (Producer<String> producer = client.newProducer(Schema.STRING).topic(topic).create()) {
            for (int n = 0; n < count; n++) {
                ids.add(producer.newMessage().key("k" + n).value("" + n).send());
            }
        }
        return ids;
    }

    static List<String> receive(Consumer<String> consumer, int count) throws Exception {
        List<String> texts = new ArrayList<>();
        while (texts.size() < count) {
            Message<String> message = consumer.receive(20, TimeUnit.SECONDS);
            if (message == null) {
                throw new AssertionError("only " + texts.size() + " of " + count + " messages came");
            }
            consumer.acknowledge(message);
            texts.add(message.getValue());
        }
        return texts;
    }

    static List<String> numbers(int from, int to) {
        List<String> texts = new ArrayList<>();
        for (int n = from; n < to; n++) {
            texts.add("" + n);
        }
        return texts;
    }

    public static void main(String[] args) throws Exception {
        long stamp = System.nanoTime();
        try (PulsarClient client = PulsarClient.builder().serviceUrl(args[0]).build()) {
            String topic = "persistent://public/default/java-" + stamp;
            Consumer<String> consumer = client.newConsumer(Schema.STRING).topic(topic).subscriptionName("s")
                    .isAckReceiptEnabled(true).subscribe();
            List<MessageId> ids = publish(client, topic, 10);
            equal("consume", receive(consumer, 10), numbers(0, 10));
            consumer.seek(ids.get(4));
            equal("seek", receive(consumer, 5), numbers(5, 10));
            consumer.close();
            System.out.println("ok java produce, consume, seek");

            List<String> read = new ArrayList<>();
            try (Reader<String> reader = client.newReader(Schema.STRING).topic(topic).startMessageId(MessageId.earliest).create()) {
                while (reader.hasMessageAvailable()) {
                    read.add(reader.readNext().getValue());
                }
            }
            equal("reader", read, numbers(0, 10));
            System.out.println("ok java reader");

            String partitioned = "persistent://public/default/javap-" + stamp;
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[1] + "/admin/v2/persistent/public/default/javap-" + stamp + "/partitions"))
                    .header("Content-Type", "application/json").PUT(HttpRequest.BodyPublishers.ofString("3")).build();
            equal("create", HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).statusCode(), 204);
            equal("partitions", client.getPartitionsForTopic(partitioned).get().size(), 3);
            try (Consumer<String> shared = client.newConsumer(Schema.STRING).topic(partitioned).subscriptionName("s")
                    .subscriptionType(SubscriptionType.Key_Shared).subscribe()) {
                publish(client, partitioned, 30);
                equal("partitioned", new TreeSet<>(receive(shared, 30)), new TreeSet<>(numbers(0, 30)));
            }
            System.out.println("ok java partitions");
        }
    }
}
